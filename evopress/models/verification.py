"""Verifies a loaded model: its weights are finite, it shares no layers, and its blocks reproduce its logits."""

import torch
from torch import Tensor

from evopress.models.language_model import LanguageModel

TOLERANCE = {torch.float32: 1e-3}
"""The largest accepted difference between logits, relative to the largest logit, by the model's dtype."""

LOW_PRECISION_TOLERANCE = 5e-2


def verify(lm: LanguageModel) -> None:
    """Run all checks of this module. Raises ValueError for the first one that fails."""
    check_weights_are_finite(lm)
    check_layers_are_not_shared(lm)
    check_blocks_make_up_model(lm)


def check_weights_are_finite(lm: LanguageModel) -> None:
    """Raise ValueError if a weight is NaN or infinite."""
    for name, weight in lm.model.named_parameters():
        if not bool(weight.isfinite().all()):
            raise ValueError(
                f"{name} of the dense model contains NaN or infinite values: check model.path or model.dtype"
            )


def check_layers_are_not_shared(lm: LanguageModel) -> None:
    """Raise ValueError if a layer shares its weight with another part, which would be compressed by accident."""
    owners: dict[int, str] = {}
    for name, parameter in lm.model.named_parameters(remove_duplicate=False):
        owners.setdefault(parameter.data_ptr(), name)
    for block in range(lm.num_blocks):
        for local in lm.layers(block):
            name = f"{lm.layer_name(block, local)}.weight"
            owner = owners[lm.linear(block, local).weight.data_ptr()]
            if owner != name:
                raise ValueError(f"{name} is the same tensor as {owner}: remove it from model.family.layers")


@torch.no_grad()
def check_blocks_make_up_model(lm: LanguageModel) -> None:
    """Verify that running the blocks one by one reproduces the model's logits.

    Raises ValueError if the logits are not finite, or if they differ because the family is wrong, or if the parts do
    not fit together because the model has more parts than a family names.
    """
    tokens = torch.arange(17, device=lm.device).remainder(lm.vocab_size).repeat(2, 1)
    try:
        blockwise = _blockwise_logits(lm, tokens)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ValueError(
            f"{lm.name} cannot run block by block ({error}): it has parts besides embeddings, blocks, norm and head, "
            f"such as a projection, or model.family names the wrong ones"
        ) from error
    with lm.full_model() as model:
        expected = model(input_ids=tokens, use_cache=False).logits.float()
    if not bool(expected.isfinite().all()):
        raise ValueError(
            f"the logits of {lm.name} are NaN or infinite: check model.path, or load it with model.dtype=float32"
        )
    tolerance = TOLERANCE.get(lm.dtype, LOW_PRECISION_TOLERANCE)
    difference = float((blockwise - expected).abs().max()) if blockwise.shape == expected.shape else float("inf")
    if not difference <= tolerance * float(expected.abs().max()):
        raise ValueError(
            f"{lm.name} has different logits when its blocks run one by one (largest difference {difference:.3g}): "
            f"set model.family to the paths of its parts"
        )


def _blockwise_logits(lm: LanguageModel, tokens: Tensor) -> Tensor:
    hidden, kwargs = lm.embed(tokens)
    for block in range(lm.num_blocks):
        hidden = lm.run_block(block, hidden, kwargs[block])
    return lm.logits(lm.final_norm(hidden)).float()
