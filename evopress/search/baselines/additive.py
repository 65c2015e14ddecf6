"""Additive allocation: assume that the loss of a profile is a sum of per-unit errors, and minimise that sum exactly.

EvoPress shows that this assumption is false for language models. The method is here for comparison.
"""

from collections.abc import Mapping
from random import Random
from typing import Literal

from pydantic import Field

from evopress.runtime.config_class import config_class
from evopress.search.base import Batch, Search, SearchRun, SearchStep, Table, fitness_of, rows_of
from evopress.search.knapsack import LevelScores, solve_knapsack
from evopress.search.selection import check_any_finite
from evopress.search.start_profiles import evenly_spaced_profile
from evopress.search.switches import all_switched, switched
from evopress.space.budget import Budget
from evopress.space.units import Profile, Space


@config_class
class Additive(Search):
    """Solves the knapsack of additive errors.

    With `layer`, the `errors` are the compressor's normalised layer errors. With `measured`, they are the changes of
    the fitness on `tokens` when a single unit of one profile changes its level. `around` names that profile: the evenly
    spaced one on the budget (`uniform`), or the least compressed one.
    """

    errors: Literal["layer", "measured"]
    around: Literal["uniform", "least_compressed"] = "uniform"
    tokens: int = Field(gt=0)

    def num_questions(self, space: Space, budget: Budget) -> int:
        return 1

    def run(self, space: Space, budget: Budget, rng: Random) -> SearchRun:
        if self.errors == "layer":
            if space.is_depth_pruning:
                raise ValueError("search.errors=layer needs layers with levels: use search.errors=measured for drops")
            errors = yield from rows_of(Table("layer_error", self.tokens))
        else:
            errors = yield from self._measure_errors(space, budget)
        return solve_knapsack(space, budget.caps(space), errors)

    def _measure_errors(self, space: Space, budget: Budget) -> SearchStep[LevelScores]:
        start = evenly_spaced_profile(space, budget) if self.around == "uniform" else space.uniform(0)
        profiles = all_switched(space, start)
        batch = Batch((start, *profiles), self.tokens, f"{len(profiles)} single switches", decisive=False)
        base, *fitness = yield from fitness_of(batch)
        check_any_finite([base])
        return error_table(space, start, base=base, fitness=dict(zip(profiles, fitness, strict=True)))


def error_table(space: Space, start: Profile, *, base: float, fitness: Mapping[Profile, float]) -> LevelScores:
    """[unit][level]: how the fitness, which is `base` at `start`, changes when only this unit moves to this level."""
    return [
        [fitness.get(switched(space, start, i, level), base) - base for level in range(len(unit.levels))]
        for i, unit in enumerate(space.units)
    ]
