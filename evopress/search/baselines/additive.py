"""Additive allocation: the loss of a profile is taken to be a sum of per-unit errors, which is minimised exactly.

This is the assumption that EvoPress shows to be false for language models; it is here to compare with. The minimum over
all profiles within the budget is a multiple-choice knapsack, solved by dynamic programming over cost::

    best[c] ← least error of the units so far at total cost c
    for each unit:  best'[c] = min over its levels l of  best[c − cost_l] + error_l

The units inside one that may be dropped are solved one after the other in the same way; then best'[c] is the least of
what they make of it and best[c] + the error of the drop, which costs nothing.
"""

from dataclasses import dataclass
from math import gcd, isfinite
from random import Random
from typing import Literal

import numpy as np
from pydantic import Field

from evopress.runtime.config_class import config_class
from evopress.search.base import Batch, Search, SearchRun, Table, check_numbers, fitness_of, rows_of
from evopress.search.moves import evenly_spaced_profile
from evopress.space.budget import Budget, Cap
from evopress.space.units import Profile, Space

MAX_STATES = 20_000
"""Finest resolution of the cost axis; coarser costs are rounded up, so that the budget holds all the same."""


@config_class
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
        switched(space, start, index, level)
        for index, unit in enumerate(space.units)
        for level in range(len(unit.levels))
        if level != start[index] and not space.is_inside_dropped(index, start)
    ]


def switched(space: Space, start: Profile, index: int, level: int) -> Profile:
    """`start` with one unit at another level."""
    return space.normalized((*start[:index], level, *start[index + 1 :]))


def error_table(space: Space, start: Profile, base: float, fitness: dict[Profile, float]) -> list[list[float]]:
    """[unit][level]: how much the fitness changed when the unit alone went to the level."""
    return [
        [fitness.get(switched(space, start, i, level), base) - base for level in range(len(unit.levels))]
        for i, unit in enumerate(space.units)
    ]


def knapsack(space: Space, caps: tuple[Cap, ...], errors: list[list[float]]) -> Profile:
    """The profile of least summed error under the caps, which do not overlap. Raises ValueError when none fits.

    A level whose error is NaN or infinite is taken only where the budget leaves no other. A unit whose parent is not
    among a cap's members is taken to be in a kept one.
    """
    worst = 1.0 + 2.0 * sum(abs(error) for unit in errors for error in unit if isfinite(error))
    errors = [[error if isfinite(error) else worst for error in unit] for unit in errors]
    profile = [0] * len(space)
    for cap in caps:
        for index, level in _Knapsack.of(space, cap).solved(errors).items():
            profile[index] = level
    return tuple(profile)


@dataclass(frozen=True)
class _Knapsack:
    """One cap in steps of cost, so that the cheapest profile costs 0.

    `inside` has the members in each member that may be dropped, `tops` those that are in no other; `extra` has the cost
    of each level of a unit above its cheapest, and that of keeping a parent with its units at their cheapest.
    """

    tops: tuple[int, ...]
    inside: dict[int, tuple[int, ...]]
    extra: dict[int, list[int]]
    num_states: int

    @classmethod
    def of(cls, space: Space, cap: Cap) -> "_Knapsack":
        members = set(cap.members)
        inside = {i: tuple(m for m in space.children[i] if m in members) for i in cap.members if i in space.children}
        tops = tuple(i for i in cap.members if space.parents[i] not in members)
        costs = {i: [level.cost for level in space.units[i].levels] for i in cap.members}
        for parent, children in inside.items():
            kept = sum(min(costs[child]) for child in children)
            costs[parent] = [kept, 0][: len(costs[parent])]
        spare = cap.max_cost - sum(min(costs[top]) for top in tops)
        if spare < 0:
            raise ValueError("no profile is within budget.target: ask for less compression")
        extra = {i: [cost - min(of_unit) for cost in of_unit] for i, of_unit in costs.items()}
        step = max(gcd(*(cost for of_unit in extra.values() for cost in of_unit)) or 1, -(-spare // MAX_STATES), 1)
        extra = {i: [-(-cost // step) for cost in of_unit] for i, of_unit in extra.items()}
        return cls(tops, inside, extra, spare // step + 1)

    def solved(self, errors: list[list[float]]) -> dict[int, int]:
        """The level of each member; 0 inside what is dropped."""
        best, chosen = np.zeros(self.num_states), {}
        for top in self.tops:
            options = self._options(best, top, errors[top])
            for child in self.inside.get(top, ()):
                kept = self._options(options[0], child, errors[child])
                chosen[child], options[0] = kept.argmin(0).astype(np.int16), kept.min(0)
            chosen[top], best = options.argmin(0).astype(np.int16), options.min(0)
        levels, state = {}, self.num_states - 1
        for top in reversed(self.tops):
            levels[top] = int(chosen[top][state])
            for child in reversed(self.inside.get(top, ())):
                levels[child] = 0 if levels[top] else int(chosen[child][state])
                state -= 0 if levels[top] else self.extra[child][levels[child]]
            state -= self.extra[top][levels[top]]
        return levels

    def _options(self, best: np.ndarray, index: int, errors: list[float]) -> np.ndarray:
        """(levels, states): the least error with the unit at each of its levels."""
        options = np.full((len(self.extra[index]), self.num_states), np.inf)
        for level, cost in enumerate(self.extra[index]):
            if cost < self.num_states:
                options[level, cost:] = best[: self.num_states - cost] + errors[level]
        return options
