"""Measures how much each unit changes the residual stream of the dense model."""

from collections.abc import Callable, Iterator, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cosine_similarity

from evopress.models.language_model import LanguageModel
from evopress.models.subblocks import SUBBLOCKS
from evopress.space.units import Space


def cosine(before: Float[Tensor, "*batch hidden"], after: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch"]:
    """Cosine similarity of the two states of each token. Source: arXiv 2403.03853, Equation 1."""
    return cosine_similarity(before.float(), after.float(), dim=-1)


def relative_change(
    before: Float[Tensor, "*batch hidden"], after: Float[Tensor, "*batch hidden"]
) -> Float[Tensor, "*batch"]:
    """‖after − before‖ / ‖after‖ of each token. Source: arXiv 2312.09299, Section 3.2."""
    return (after.float() - before.float()).norm(dim=-1) / after.float().norm(dim=-1)


STREAM_MEASURES: Mapping[str, tuple[Callable[[Tensor, Tensor], Tensor], float]] = {
    "cosine": (cosine, 0.0),
    "relative_change": (relative_change, float("inf")),
}
"""Each measure, and its value for a span that reaches beyond the end of the model."""


@torch.no_grad()
def stream_changes(
    lm: LanguageModel, space: Space, tokens: Int[Tensor, "batch time"], measure: str, spans: tuple[float, ...]
) -> list[list[float]]:
    """[unit][i]: `measure` between the stream before the unit and the stream `spans[i]` units later.

    The result is a mean over tokens. `measure` is a key of `STREAM_MEASURES`.
    """
    change, value_beyond_the_end = STREAM_MEASURES[measure]
    sums = torch.zeros(len(space), len(spans), dtype=torch.float64)
    for window in tokens.split(1):
        states = list(_states(lm, space, window.to(lm.device)))
        for unit in range(len(space)):
            for column, span in enumerate(spans):
                end = unit + int(span)
                if end < len(states):
                    sums[unit, column] += float(change(states[unit], states[end]).mean())
                else:
                    sums[unit, column] += value_beyond_the_end
    return (sums / len(tokens)).tolist()


def _states(lm: LanguageModel, space: Space, window: Tensor) -> Iterator[Tensor]:
    """The residual stream before the first unit and after each unit."""
    hidden, kwargs = lm.embed(window)
    yield hidden
    for unit in space.units:
        last_block = unit.blocks[-1]
        if unit.kind == SUBBLOCKS[0]:
            yield lm.run_block(last_block, hidden, kwargs[last_block], dropped=frozenset({SUBBLOCKS[1]}))
            continue
        for block in unit.blocks:
            hidden = lm.run_block(block, hidden, kwargs[block])
        yield hidden
