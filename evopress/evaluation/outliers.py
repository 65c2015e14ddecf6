"""Measures how many weights of each block of the dense model are outliers."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor

from evopress.models.hooks import watch_layers
from evopress.models.language_model import LanguageModel

LayerNames = tuple[str, ...]


@torch.no_grad()
def outlier_shares(
    lm: LanguageModel, tokens: Int[Tensor, "batch time"], multiples: tuple[float, ...]
) -> list[list[float]]:
    """[block][i]: the share of scores |w|·‖x‖ in the block that exceed `multiples[i]` times their mean.

    Source: arXiv 2310.05175, Equation 1, computed over all layers of a block together.
    """
    hidden, kwargs = lm.embed(tokens.to(lm.device))
    shares = []
    for block in range(lm.num_blocks):
        with _input_powers(lm, block) as powers:
            hidden = lm.run_block(block, hidden, kwargs[block])
        scores = torch.cat(
            [_scores(lm, block, local, power) for group, power in powers.items() for local in group]
        )  # (weights of the block,)
        shares.append([float((scores > multiple * scores.mean()).float().mean()) for multiple in multiples])
    return shares


def _scores(
    lm: LanguageModel, block: int, local: str, power: Float[Tensor, " cols"]
) -> Float[Tensor, " weights_of_layer"]:
    """|w|·‖x‖ of every weight of a layer."""
    weight = lm.linear(block, local).weight.to(lm.device, torch.float32)
    return (weight.abs() * power.sqrt()).flatten()


@contextmanager
def _input_powers(lm: LanguageModel, block: int) -> Iterator[dict[LayerNames, Float[Tensor, " cols"]]]:
    """While open, running the block fills the dictionary: Σ x² of each input column, by group of layers."""
    powers: dict[LayerNames, Tensor] = {}

    def record(group: LayerNames, inputs: Tensor, output: Tensor) -> None:
        powers[group] = inputs.flatten(0, -2).float().square().sum(0)

    with watch_layers({group: lm.linear(block, group[0]) for group in lm.layer_groups(block)}, record):
        yield powers
