"""The switches of many units in order of their score per cost, without a look at all of them for every switch."""

from collections.abc import Iterable, Iterator
from heapq import heapify, heappop, heappush
from math import isnan

from evopress.search.knapsack import LevelScores
from evopress.search.switches import Switch
from evopress.space.units import Space

Entry = tuple[bool, float, int, int, int, int]
"""Whether the score is NaN, change of score per cost, unit, level, level it leaves, extra cost."""


class SwitchQueue:
    """All switches of `units` from `levels`, which `make` changes in place.

    The range of costs given to `pop` may only shrink from call to call, because a switch that is outside of it is
    forgotten.
    """

    def __init__(self, space: Space, levels: list[int], units: Iterable[int], scores: LevelScores):
        self.space = space
        self.levels = levels
        self.scores = scores
        self._heap: list[Entry] = [entry for unit in units for entry in self._entries(unit)]
        heapify(self._heap)

    def pop(self, lowest: float, highest: float) -> Switch | None:
        """The switch of the best score per cost whose extra cost is in the range, or None. NaN comes last."""
        while self._heap:
            _, _, unit, level, left, extra = heappop(self._heap)
            if self.levels[unit] == left and lowest <= extra <= highest:
                return unit, level
        return None

    def make(self, switch: Switch) -> int:
        """Make the switch; returns its extra cost."""
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
            if extra:
                score = (scores[level] - scores[current]) / abs(extra)
                yield isnan(score), 0.0 if isnan(score) else score, unit, level, current, extra
