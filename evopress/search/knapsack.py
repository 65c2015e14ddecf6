"""The profile of least summed error within the budget, by dynamic programming.

One level per unit under a cap is a multiple-choice knapsack. It is solved exactly over the cost::

    best[c] ← least error of the units so far at total cost c
    for each unit:  best'[c] = min over its levels l of  best[c − cost_l] + error_l

The units inside a droppable parent are processed one after another in the same way. Then best'[c] is the smaller of
their result (the parent is kept) and of best[c] + the error of the drop, which costs nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

import numpy as np

from evopress.space.budget import Cap
from evopress.space.units import Profile, Space

LevelScores = list[list[float]]
"""[unit][level]: a number for every level of every unit, lower is better; an error, or a change of the fitness."""

MAX_STATES = 20_000
"""Finest resolution of the cost axis. Where this is too coarse, costs are rounded up, so the budget always holds."""

MAX_ERROR = 1e100
"""Errors of this size and beyond count as infinite, so that sums of errors cannot overflow."""


def solve_knapsack(space: Space, caps: Sequence[Cap], errors: LevelScores) -> Profile:
    """The profile of least summed error under the caps, which do not overlap. Raises ValueError when none fits.

    A level whose error is NaN or infinite is used only if nothing else fits the budget. A unit whose parent is not
    under the same cap is treated as if its parent is kept.
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
    """The knapsack of one cap, with costs in steps above the cheapest profile.

    `tops` are the members whose parent is not a member. `inside` has the members inside each member that is a parent.
    `extra` has, for each unit, the cost of each level above its cheapest one. The cost of keeping a parent includes the
    cheapest levels of the units inside it.
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

    def solve(self, errors: LevelScores) -> dict[int, int]:
        """The level of each member; 0 inside what is dropped."""
        best, chosen = np.zeros(self.num_states), {}
        for top in self.tops:
            options = self._options(best, top, errors[top])
            for child in self.inside.get(top, ()):
                kept = self._options(options[0], child, errors[child])
                chosen[child], options[0] = kept.argmin(0).astype(np.int16), kept.min(0)
            chosen[top], best = options.argmin(0).astype(np.int16), options.min(0)
        return self._traced_back(chosen)

    def _traced_back(self, chosen: dict[int, np.ndarray]) -> dict[int, int]:
        """The levels that lead to the least error, from the last unit to the first."""
        levels, state = {}, self.num_states - 1
        for top in reversed(self.tops):
            levels[top] = int(chosen[top][state])
            for child in reversed(self.inside.get(top, ())):
                levels[child] = 0 if levels[top] else int(chosen[child][state])
                state -= 0 if levels[top] else self.extra[child][levels[child]]
            state -= self.extra[top][levels[top]]
        return levels

    def _options(self, best: np.ndarray, index: int, errors: Sequence[float]) -> np.ndarray:
        """(levels, states): the least error with the unit at each of its levels."""
        options = np.full((len(self.extra[index]), self.num_states), np.inf)
        for level, cost in enumerate(self.extra[index]):
            if cost < self.num_states:
                options[level, cost:] = best[: self.num_states - cost] + errors[level]
        return options
