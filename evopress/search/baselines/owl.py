"""OWL: blocks with more outliers keep more weights.

Source: arXiv 2310.05175. The outlier ratio D_b of a block is the share of its scores |w|·‖x‖ above M times their mean.
The share of weights that a block keeps is 1 − target + D_b, where the D_b are scaled to a range of 2λ and shifted to a
mean of 0.
"""

from random import Random

from pydantic import Field

from evopress.runtime.config_class import config_class
from evopress.search.base import Batch, Search, SearchRun, Table, fitness_of, rows_of
from evopress.search.repair import cost_of_raising
from evopress.search.selection import best_first, check_any_finite
from evopress.space.budget import Budget, Cap
from evopress.space.units import Profile, Space


@config_class
class Owl(Search):
    """Every pair of one of the `multiples` (M) and one of the `spreads` (λ) gives a profile. The fittest is returned.

    The profiles are compared on `tokens`. The sparsity of each block is rounded to the levels of its layers, and these
    are then adjusted to the exact budget.
    """

    multiples: list[float] = Field(min_length=1)
    spreads: list[float] = Field(min_length=1)
    tokens: int = Field(gt=0)

    def num_questions(self, space: Space, budget: Budget) -> int:
        return 2

    def run(self, space: Space, budget: Budget, rng: Random) -> SearchRun:
        if budget.metric != "sparsity":
            raise ValueError("search=owl assigns sparsities: use it with budget=sparsity50 or another sparsity")
        (cap,) = budget.caps(space)
        if cap.slack(space, space.uniform(max(len(unit.levels) for unit in space.units))) < 0:
            raise ValueError(
                f"search=owl drops nothing, and the sparsest levels do not reach budget.target={budget.target}: lower "
                "it, raise compress.base, or use another search"
            )
        ratios = yield from rows_of(Table("outliers", self.tokens, tuple(self.multiples)))
        profiles = dict.fromkeys(
            nearest_profile(space, cap, block_sparsities([row[i] for row in ratios], float(budget.target), spread))
            for i in range(len(self.multiples))
            for spread in self.spreads
        )
        fitness = yield from fitness_of(Batch(tuple(profiles), self.tokens, f"{len(profiles)} settings"))
        check_any_finite(fitness)
        return best_first(list(profiles), fitness)[0]


def block_sparsities(ratios: list[float], target: float, spread: float) -> list[float]:
    """The sparsity of each block from its outlier ratio. The mean is `target` and the range is 2·`spread`."""
    low, high = min(ratios), max(ratios)
    if high == low:
        return [target] * len(ratios)
    scaled = [2 * spread * (ratio - low) / (high - low) for ratio in ratios]
    mean = sum(scaled) / len(scaled)
    return [target - (ratio - mean) for ratio in scaled]


def nearest_profile(space: Space, cap: Cap, sparsities: list[float]) -> Profile:
    """The levels that are nearest to the sparsity of each block, adjusted step by step until they spend the cap.

    Nothing is dropped.
    """
    target = [sparsities[unit.blocks[0]] for unit in space.units]
    levels = [
        0
        if i in space.children
        else min(range(len(unit.levels)), key=lambda level: abs(unit.levels[level].value - sparsity))
        for i, (unit, sparsity) in enumerate(zip(space.units, target, strict=True))
    ]
    slack = cap.slack(space, levels)
    while slack < 0:
        lowerable = _movable(space, levels, 1)
        index = min(lowerable, key=lambda i: space.units[i].levels[levels[i] + 1].value - target[i])
        slack += cost_of_raising(space, index, levels[index] + 1)
        levels[index] += 1
    while True:
        raisable = [i for i in _movable(space, levels, -1) if cost_of_raising(space, i, levels[i]) <= slack]
        if not raisable:
            return tuple(levels)
        index = min(raisable, key=lambda i: target[i] - space.units[i].levels[levels[i] - 1].value)
        slack -= cost_of_raising(space, index, levels[index])
        levels[index] -= 1


def _movable(space: Space, levels: list[int], step: int) -> list[int]:
    """The units that can move by `step` levels; a positive step is down."""
    tradable = space.tradable_units(levels, range(len(space)))
    return [i for i in tradable if 0 <= levels[i] + step < len(space.units[i].levels)]
