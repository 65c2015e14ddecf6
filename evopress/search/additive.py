"""Additive allocation: the loss of a profile is taken to be a sum of per-unit errors, which is minimised exactly.

This is the assumption that EvoPress shows to be false for language models; it is here to compare with. The minimum over
all profiles within the budget is a multiple-choice knapsack, solved by dynamic programming over cost::

    best[c] ← least error of the units so far at total cost c
    for each unit:  best'[c] = min over its levels l of  best[c − cost_l] + error_l
"""

from math import gcd, isfinite
from random import Random
from typing import Literal

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as checked_dataclass

from evopress.budget import Budget, Cap
from evopress.profile import Profile, Space
from evopress.search.base import Batch, Search, SearchRun, Table, check_numbers, fitness_of, rows_of
from evopress.search.moves import evenly_spaced_profile

MAX_STATES = 20_000
"""Finest resolution of the cost axis; coarser costs are rounded up, so that the budget holds all the same."""


@checked_dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Additive(Search):
    """Dynamic programming on additive errors.

    `errors`: the compressor's normalised layer errors (`layer`), or the measured change of fitness on `tokens` when one
    unit alone leaves the `around` profile (`measured`): the evenly spaced one on the budget, or the least compressed.
    """

    errors: Literal["layer", "measured"]
    around: Literal["uniform", "least_compressed"] = "uniform"
    tokens: int = Field(gt=0)

    def num_questions(self, space: Space, budget: Budget) -> int:
        return 1

    def run(self, space: Space, budget: Budget, rng: Random) -> SearchRun:
        if self.errors == "layer":
            errors = yield from rows_of(Table("layer_error", self.tokens))
        else:
            start = evenly_spaced_profile(space, budget) if self.around == "uniform" else space.uniform(0)
            profiles = switches(space, start)
            fitness = yield from fitness_of(Batch((start, *profiles), self.tokens, f"{len(profiles)} single switches"))
            check_numbers(fitness[:1])
            errors = error_table(space, start, fitness[0], dict(zip(profiles, fitness[1:], strict=True)))
        return knapsack(space, budget.caps(space), errors)


def switches(space: Space, start: Profile) -> list[Profile]:
    """All profiles that differ from `start` in the level of one unit."""
    return [
        (*start[:index], level, *start[index + 1 :])
        for index, unit in enumerate(space.units)
        for level in range(len(unit.levels))
        if level != start[index]
    ]


def error_table(space: Space, start: Profile, base: float, fitness: dict[Profile, float]) -> list[list[float]]:
    """[unit][level]: how much the fitness changed when the unit alone went to the level."""
    return [
        [fitness.get((*start[:i], level, *start[i + 1 :]), base) - base for level in range(len(unit.levels))]
        for i, unit in enumerate(space.units)
    ]


def knapsack(space: Space, caps: tuple[Cap, ...], errors: list[list[float]]) -> Profile:
    """The profile of least summed error under the caps, which do not overlap. Raises ValueError when none fits.

    A level whose error is NaN or infinite is taken only where the budget leaves no other.
    """
    worst = 1.0 + 2.0 * sum(abs(error) for unit in errors for error in unit if isfinite(error))
    errors = [[error if isfinite(error) else worst for error in unit] for unit in errors]
    profile = [0] * len(space)
    for cap in caps:
        for index, level in zip(cap.members, _solve(space, cap, errors), strict=True):
            profile[index] = level
    return tuple(profile)


def _solve(space: Space, cap: Cap, errors: list[list[float]]) -> list[int]:
    """Levels of the cap's members."""
    costs = [[level.cost for level in space.units[index].levels] for index in cap.members]
    least = [min(unit) for unit in costs]
    spare = cap.max_cost - sum(least)
    if spare < 0:
        raise ValueError("budget.target is below the most compressed profile: raise it")
    extra = [[cost - low for cost in unit] for unit, low in zip(costs, least, strict=True)]
    step = max(gcd(*(cost for unit in extra for cost in unit)) or 1, -(-spare // MAX_STATES), 1)
    extra = [[-(-cost // step) for cost in unit] for unit in extra]
    num_states = spare // step + 1
    best = np.zeros(num_states)
    chosen = np.zeros((len(extra), num_states), dtype=np.int16)
    for row, (unit, index) in enumerate(zip(extra, cap.members, strict=True)):
        options = np.full((len(unit), num_states), np.inf)
        for level, cost in enumerate(unit):
            if cost < num_states:
                options[level, cost:] = best[: num_states - cost] + errors[index][level]
        chosen[row] = options.argmin(0)
        best = options.min(0)
    levels, state = [], num_states - 1
    for row in reversed(range(len(extra))):
        level = int(chosen[row, state])
        levels.append(level)
        state -= extra[row][level]
    return levels[::-1]
