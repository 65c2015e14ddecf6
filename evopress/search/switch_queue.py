"""A queue of the switches of many units, ordered by score per cost. Taking the next one does not scan them all."""

from collections.abc import Iterable, Iterator
from heapq import heapify, heappop, heappush
from math import inf, isnan

from evopress.search.knapsack import LevelScores
from evopress.search.switches import Switch
from evopress.space.units import Space

Entry = tuple[bool, float, int, int, int, int]
"""Whether the score is NaN, change of score per cost, unit, new level, old level, extra cost."""


class SwitchQueue:
    """The switches of `units` from `levels` whose extra cost is in `costs`. `make` changes `levels` in place.

    `pop` discards the switches outside its range of costs. So the first range must be within `costs`, and each later
    one within the one before.
    """

    def __init__(
        self,
        space: Space,
        levels: list[int],
        *,
        units: Iterable[int],
        scores: LevelScores,
        costs: tuple[float, float] = (-inf, inf),
    ):
        self.space = space
        self.levels = levels
        self.scores = scores
        self._lowest, self._highest = costs
        self._heap: list[Entry] = [entry for unit in units for entry in self._entries(unit)]
        heapify(self._heap)

    def pop(self, lowest: float, highest: float) -> Switch | None:
        """The switch with the best score per cost whose extra cost is in the range, or None. NaN comes last."""
        while self._heap:
            _, _, unit, level, old_level, extra = heappop(self._heap)
            if self.levels[unit] == old_level and lowest <= extra <= highest:
                return unit, level
        return None

    def make(self, switch: Switch) -> int:
        """Make the switch and return its extra cost."""
        unit, level = switch
        options = self.space.units[unit].levels
        extra = options[level].cost - options[self.levels[unit]].cost
        self.levels[unit] = level
        for entry in self._entries(unit):
            heappush(self._heap, entry)
        return extra

    def _entries(self, unit: int) -> Iterator[Entry]:
        options, current, scores = self.space.units[unit].levels, self.levels[unit], self.scores[unit]
        for level, option in enumerate(options):
            extra = option.cost - options[current].cost
            if extra and self._lowest <= extra <= self._highest:
                score = (scores[level] - scores[current]) / abs(extra)
                yield isnan(score), 0.0 if isnan(score) else score, unit, level, current, extra
