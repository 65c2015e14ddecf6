"""Solves the knapsack of many units nearly exactly. The time grows with the number of units, not with the costs.

With a price λ on cost, the level of each unit can be chosen independently of the others::

    L(λ) = Σ over units of  min over levels l of (error_l + λ · cost_l)  −  λ · max_cost

L(λ) is a lower bound on the least summed error, for every λ ≥ 0. Bisection finds the least λ whose choice meets the
cap. What is left of the cap is then spent on the switches that lower the error most per cost, as long as any fits. Only
the remainder that is too small for any switch is lost, so the relative gap to the optimum shrinks as the number of
units grows.

Source: M. Fisher, The Lagrangian Relaxation Method for Solving Integer Programming Problems, Management Science 1981.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

import numpy as np

BISECTIONS = 100
"""Most steps of the bisection. Between 0 and 1, they determine every λ above 1e-14 to the last bit of a float64."""

Levels = np.ndarray
"""One level index per unit, int64."""


@dataclass(frozen=True)
class Relaxation:
    """A knapsack. `costs` and `errors` are (units, levels). Levels that do not exist have infinite error.

    `children` maps the row of a parent to the rows of the units inside it. Level 0 of a parent keeps it; level 1, if it
    has one, drops it. Units inside a dropped parent cost nothing and have no error.
    """

    costs: np.ndarray
    errors: np.ndarray
    children: Mapping[int, Sequence[int]]
    max_cost: int

    def solve(self) -> Levels:
        """One level per unit, within the cap; 0 inside a dropped parent. The cheapest choice must be within the cap."""
        return self._spend(self._best_within_cap())

    def lower_bound(self, price: float) -> float:
        """L(price)."""
        levels = self._best_at(price)
        return self.error(levels) + price * (self.cost(levels) - self.max_cost)

    def cost(self, levels: Levels) -> int:
        return int(np.take_along_axis(self.costs, levels[:, None], 1)[self._is_present(levels)].sum())

    def error(self, levels: Levels) -> float:
        return float(np.take_along_axis(self.errors, levels[:, None], 1)[self._is_present(levels)].sum())

    def _is_present(self, levels: Levels) -> np.ndarray:
        """Whether each unit is outside of dropped parents, bool (units,)."""
        is_present = np.ones(len(levels), dtype=bool)
        for parent, members in self.children.items():
            is_present[list(members)] = levels[parent] == 0
        return is_present

    def _best_at(self, price: float) -> Levels:
        """The choice of least error + price · cost. Ties go to the cheapest level."""
        values = self.errors + price * self.costs
        ties = values == values.min(1, keepdims=True)
        levels = np.where(ties, self.costs, np.iinfo(np.int64).max).argmin(1)
        best = values.min(1)
        for parent, members in self.children.items():
            kept = values[parent, 0] + best[list(members)].sum()
            levels[parent] = int(values[parent, 1] <= kept) if values.shape[1] > 1 else 0
            if levels[parent]:
                levels[list(members)] = 0
        return levels

    def _best_within_cap(self) -> Levels:
        """The choice at the least price whose choice meets the cap, by bisection."""
        low, high = 0.0, 1.0
        levels = self._best_at(low)
        if self.cost(levels) <= self.max_cost:
            return levels
        while self.cost(levels := self._best_at(high)) > self.max_cost:
            low, high = high, 8 * high
            if not np.isfinite(high):
                return self._best_at(low)
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            if not low < middle < high:
                break
            candidate = self._best_at(middle)
            if self.cost(candidate) <= self.max_cost:
                high, levels = middle, candidate
            else:
                low = middle
        return levels

    def _spend(self, levels: Levels) -> Levels:
        """Make the switch that lowers the error most per cost and still fits, until there is none."""
        levels, slack = levels.copy(), self.max_cost - self.cost(levels)
        present = np.flatnonzero(self._is_present(levels)).tolist()
        heap = [entry for unit in present for entry in self._switches(levels, unit)]
        heapify(heap)
        while heap:
            _, extra, unit, level, current = heappop(heap)
            if levels[unit] != current or extra > slack:
                continue
            levels[unit] = level
            slack -= extra
            for entry in self._switches(levels, unit):
                heappush(heap, entry)
        return levels

    def _switches(self, levels: Levels, unit: int) -> list[tuple[float, int, int, int, int]]:
        """(change of error per cost, extra cost, unit, level, current level) of all switches that lower the error."""
        if unit in self.children:
            return []
        current = int(levels[unit])
        switches = []
        for level in range(self.costs.shape[1]):
            extra = int(self.costs[unit, level] - self.costs[unit, current])
            change = float(self.errors[unit, level] - self.errors[unit, current])
            if change < 0:
                switches.append((change / extra if extra > 0 else -np.inf, extra, unit, level, current))
        return switches
