"""The profile of least summed error within the budget: a multiple-choice knapsack, one level per unit under a cap.

If the cost axis is short enough, dynamic programming solves the problem exactly::

    best[c] ← least error of the units so far at total cost c
    for each unit:  best'[c] = min over its levels l of  best[c − cost_l] + error_l

The units inside a droppable parent are processed one after another in the same way. Then best'[c] is the smaller of
their result (the parent is kept) and best[c] + the error of the drop, which costs nothing.

If the cost axis is too long, costs are rounded up to coarser steps. The roundings of thousands of units add up to a
tenth of the budget. So a Lagrangian relaxation, which is nearly exact for many units, is solved as well
(lagrangian.py), and the profile of lower error is taken. If even the coarse problem is too large for dynamic
programming, only the relaxation is solved.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import fsum, gcd

import numpy as np

from evopress.search.lagrangian import Relaxation
from evopress.space.budget import Cap
from evopress.space.units import Profile, Space

LevelScores = list[list[float]]
"""[unit][level]: an error or a change of the fitness for every level of every unit. Lower is better."""

MAX_STATES = 20_000
"""The largest number of steps on the cost axis of dynamic programming."""

MAX_WORK = 200_000_000
"""The largest number of levels × states for dynamic programming. This many take about a second."""

MAX_ERROR = 1e100
"""Errors of at least this size count as infinite, so that sums of errors cannot overflow."""


def solve_knapsack(space: Space, caps: Sequence[Cap], errors: LevelScores) -> Profile:
    """The profile of least summed error under the caps, which do not overlap. Raises ValueError when none fits.

    A level whose error is NaN or infinite is used only if nothing else fits the budget. A unit whose parent is not
    under the same cap is treated as if its parent were kept.
    """
    worst = 1.0 + 2.0 * sum(abs(error) for unit in errors for error in unit if abs(error) < MAX_ERROR)
    errors = [[error if abs(error) < MAX_ERROR else worst for error in unit] for unit in errors]
    profile = [0] * len(space)
    for cap in caps:
        for index, level in _Knapsack.of(space, cap).solve(errors).items():
            profile[index] = level
    return tuple(profile)


@dataclass(frozen=True)
class _Knapsack:
    """The knapsack of one cap.

    `tops` are the members that are not inside another member. `inside` has the members inside each member that is a
    parent. `extra` has the cost of each level of each unit, minus that of its cheapest level. The cost of keeping a
    parent includes that of the cheapest levels of the units inside it. `spare` is the part of the cap that the cheapest
    profile does not use. Dynamic programming counts costs in units of `step`, rounded up.
    """

    tops: tuple[int, ...]
    inside: dict[int, tuple[int, ...]]
    extra: dict[int, list[int]]
    spare: int
    step: int

    @classmethod
    def of(cls, space: Space, cap: Cap) -> "_Knapsack":
        members = set(cap.members)
        inside = {i: tuple(m for m in space.children[i] if m in members) for i in cap.members if i in space.children}
        tops = tuple(i for i in cap.members if space.parents[i] not in members)
        costs = {i: [level.cost for level in space.units[i].levels] for i in cap.members}
        for parent, children in inside.items():
            kept = costs[parent][0] + sum(min(costs[child]) for child in children)
            costs[parent] = [kept, 0][: len(costs[parent])]
        spare = cap.max_cost - sum(min(costs[top]) for top in tops)
        if spare < 0:
            raise ValueError("no profile is within budget.target: ask for less compression")
        extra = {i: [cost - min(of_unit) for cost in of_unit] for i, of_unit in costs.items()}
        divisor = gcd(*(cost for of_unit in extra.values() for cost in of_unit)) or 1
        return cls(tops, inside, extra, spare, max(divisor, -(-spare // MAX_STATES)))

    def solve(self, errors: LevelScores) -> dict[int, int]:
        """The level of each member; 0 for members inside a dropped one."""
        is_exact = all(cost % self.step == 0 for of_unit in self.extra.values() for cost in of_unit)
        is_fast = sum(map(len, self.extra.values())) * self.num_states <= MAX_WORK
        solutions = [self._by_dynamic_programming(errors)] if is_fast else []
        if not (is_exact and is_fast):
            solutions.append(self._by_relaxation(errors))
        return min(solutions, key=lambda levels: self._total_error(levels, errors))

    @property
    def num_states(self) -> int:
        return self.spare // self.step + 1

    def _total_error(self, levels: Mapping[int, int], errors: LevelScores) -> float:
        dropped = {child for parent, children in self.inside.items() if levels[parent] for child in children}
        return fsum(errors[unit][level] for unit, level in levels.items() if unit not in dropped)

    def _by_relaxation(self, errors: LevelScores) -> dict[int, int]:
        """The levels that a Lagrangian relaxation gives."""
        units = list(self.extra)
        row_of = {unit: row for row, unit in enumerate(units)}
        shape = (len(units), max(map(len, self.extra.values())))
        costs, padded = np.zeros(shape, dtype=np.int64), np.full(shape, np.inf)
        for row, unit in enumerate(units):
            costs[row, : len(self.extra[unit])] = self.extra[unit]
            padded[row, : len(self.extra[unit])] = errors[unit][: len(self.extra[unit])]
        children = {row_of[parent]: [row_of[child] for child in inside] for parent, inside in self.inside.items()}
        levels = Relaxation(costs, padded, children, self.spare).solve()
        return {unit: int(levels[row]) for row, unit in enumerate(units)}

    def _by_dynamic_programming(self, errors: LevelScores) -> dict[int, int]:
        """The levels of least error at costs rounded up to `step`."""
        steps = {unit: [-(-cost // self.step) for cost in of_unit] for unit, of_unit in self.extra.items()}
        best, chosen = np.zeros(self.num_states), {}
        for top in self.tops:
            options = _options(best, steps[top], errors[top])
            for child in self.inside.get(top, ()):
                kept = _options(options[0], steps[child], errors[child])
                chosen[child], options[0] = kept.argmin(0).astype(np.int16), kept.min(0)
            chosen[top], best = options.argmin(0).astype(np.int16), options.min(0)
        return self._traced_back(steps, chosen)

    def _traced_back(self, steps: Mapping[int, list[int]], chosen: Mapping[int, np.ndarray]) -> dict[int, int]:
        """The levels that lead to the least error, traced from the last unit to the first."""
        levels, state = {}, self.num_states - 1
        for top in reversed(self.tops):
            levels[top] = int(chosen[top][state])
            for child in reversed(self.inside.get(top, ())):
                levels[child] = 0 if levels[top] else int(chosen[child][state])
                state -= 0 if levels[top] else steps[child][levels[child]]
            state -= steps[top][levels[top]]
        return levels


def _options(best: np.ndarray, steps: Sequence[int], errors: Sequence[float]) -> np.ndarray:
    """(levels, states): the least error so far with a unit at each of its levels."""
    options = np.full((len(steps), len(best)), np.inf)
    for level, cost in enumerate(steps):
        if cost < len(best):
            options[level, cost:] = best[: len(best) - cost] + errors[level]
    return options
