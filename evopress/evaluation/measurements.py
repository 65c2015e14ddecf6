"""Measurements of the dense model and of the levels that some searches build on: layer errors, outliers, similarity."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import cosine_similarity

from evopress.database.store import Database
from evopress.models.language_model import LanguageModel
from evopress.space.subblocks import SUBBLOCKS
from evopress.space.units import OUTSIDE, Space

Rows = list[list[float]]


def layer_errors(space: Space, database: Database) -> Rows:
    """[unit][level]: the compressor's normalised errors, summed over the layers of a unit.

    A dropped parent has those of its layers if they were all zero: each would lose all of its output, an error of one.
    """
    return [
        [0.0, float(sum(len(space.units[child].layers) for child in space.children[index]))][: len(unit.levels)]
        if index in space.children
        else [sum(of_level) for of_level in zip(*(database.errors(block, layer) for layer in unit.layers), strict=True)]
        for index, unit in enumerate(space.units)
        for block in unit.blocks or (OUTSIDE,)
    ]


@torch.no_grad()
def outliers(lm: LanguageModel, tokens: Int[Tensor, "batch time"], multiples: tuple[float, ...]) -> Rows:
    """[block][i]: the share of the block's scores |w|·‖x‖ that are above `multiples[i]` times their mean.

    Source: arXiv 2310.05175, Equation 1; all layers of a block together.
    """
    hidden, kwargs = lm.embed(tokens.to(lm.device))
    rows = []
    for block in range(lm.num_blocks):
        powers: dict[tuple[str, ...], Tensor] = {}
        with _watching(lm, block, powers):
            hidden = lm.run_block(block, hidden, kwargs[block])
        scores = torch.cat(
            [
                (lm.linear(block, local).weight.to(lm.device, torch.float32).abs() * power.sqrt()).flatten()
                for group, power in powers.items()
                for local in group
            ]
        )
        rows.append([float((scores > multiple * scores.mean()).float().mean()) for multiple in multiples])
    return rows


@contextmanager
def _watching(lm: LanguageModel, block: int, powers: dict[tuple[str, ...], Tensor]) -> Iterator[None]:
    """While open, Σ x² per input column (cols,) of each layer group is noted."""

    def note(group: tuple[str, ...]) -> Callable[[Module, tuple[Tensor, ...]], None]:
        return lambda module, args: powers.update({group: args[0].flatten(0, -2).float().square().sum(0)})

    handles = [lm.linear(block, group[0]).register_forward_pre_hook(note(group)) for group in lm.layer_groups]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def cosine(before: Float[Tensor, "*batch hidden"], after: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch"]:
    """Similarity of the residual stream at two places, token by token. Source: arXiv 2403.03853, Equation 1."""
    return cosine_similarity(before.float(), after.float(), dim=-1)


def relative_change(
    before: Float[Tensor, "*batch hidden"], after: Float[Tensor, "*batch hidden"]
) -> Float[Tensor, "*batch"]:
    """‖after − before‖ / ‖after‖, token by token. Source: arXiv 2312.09299, Section 3.2."""
    return (after.float() - before.float()).norm(dim=-1) / after.float().norm(dim=-1)


STREAM_MEASURES: Mapping[str, tuple[Callable[[Tensor, Tensor], Tensor], float]] = {
    "cosine": (cosine, 0.0),
    "relative_change": (relative_change, float("inf")),
}
"""How two places of the stream are compared, and what stands where there is no second place."""


@torch.no_grad()
def stream(
    lm: LanguageModel, space: Space, tokens: Int[Tensor, "batch time"], measure: str, spans: tuple[float, ...]
) -> Rows:
    """[unit][i]: `measure` between the residual stream before the unit and after `spans[i]` units, mean over tokens."""
    compare, absent = STREAM_MEASURES[measure]
    sums = torch.zeros(len(space), len(spans), dtype=torch.float64)
    for window in tokens.split(1):
        places = list(_places(lm, space, window.to(lm.device)))
        for unit in range(len(space)):
            for column, span in enumerate(spans):
                end = unit + int(span)
                inside = end < len(places)
                sums[unit, column] += float(compare(places[unit], places[end]).mean()) if inside else absent
    return (sums / len(tokens)).tolist()


def _places(lm: LanguageModel, space: Space, window: Tensor) -> Iterator[Tensor]:
    """The residual stream before the first unit and after each unit."""
    hidden, kwargs = lm.embed(window)
    yield hidden
    for unit in space.units:
        last = unit.blocks[-1]
        if unit.kind == SUBBLOCKS[0]:
            yield lm.run_block(last, hidden, kwargs[last], dropped=frozenset({SUBBLOCKS[1]}))
            continue
        for block in unit.blocks:
            hidden = lm.run_block(block, hidden, kwargs[block])
        yield hidden
