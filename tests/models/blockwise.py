"""Runs a model block by block, and compares its state before and after, for the tests of models."""

import torch

from evopress.models.language_model import LanguageModel
from tests.tiny_models import SLIDING_WINDOW, token_windows

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
TOKENS = token_windows(3, 2 * SLIDING_WINDOW + 5)


def blockwise_logits(lm: LanguageModel, tokens: torch.Tensor) -> torch.Tensor:
    """The logits of a model that runs block by block."""
    with torch.no_grad():
        hidden, kwargs = lm.embed(tokens)
        for block in range(lm.num_blocks):
            hidden = lm.run_block(block, hidden, kwargs[block])
        return lm.logits(lm.final_norm(hidden))


def state(lm: LanguageModel) -> dict[str, torch.Tensor]:
    """Copies of all tensors of the model, by name."""
    return {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}


def assert_same_state(lm: LanguageModel, before: dict[str, torch.Tensor]) -> None:
    after = lm.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(before[name], after[name]) for name in before)
