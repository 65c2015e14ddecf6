"""Counts the levels that would be read from the database and decoded."""

from collections import OrderedDict
from collections.abc import Sequence

from evopress.planning.planned_run import PlannedRun
from evopress.space.units import Profile


class DecodedCount:
    """Counts what `DecodedLevels` would read. If its levels exceed `evaluator.cache_gb`, the least recently used go."""

    def __init__(self, run: PlannedRun):
        self.run = run
        self.limit_bytes = int(run.job.evaluator.cache_gb * 1e9)
        self.most_bytes = 0
        """The largest memory that decoded levels took."""
        self._held: OrderedDict[tuple[int, int], int] = OrderedDict()
        self._held_bytes = 0

    def use(self, profiles: Sequence[Profile]) -> int:
        """Use the levels of all profiles, one unit after the other. Returns how many packed bytes are read."""
        read_bytes = 0
        for index, unit in enumerate(self.run.space.units):
            if unit.layers:
                kept = [profile for profile in profiles if not self.run.space.is_inside_dropped(index, profile)]
                read_bytes += sum(self._get(index, level) for level in sorted({profile[index] for profile in kept}))
        return read_bytes

    def use_all(self, profile: Profile) -> int:
        """Use all levels of the units that `profile` keeps, from last to first, as a table does. Returns the same."""
        space = self.run.space
        kept = [index for index in range(len(space)) if not space.is_inside_dropped(index, profile)]
        units = [(index, space.units[index]) for index in reversed(kept) if space.units[index].layers]
        return sum(self._get(index, level) for index, unit in units for level in range(len(unit.levels)))

    def _get(self, index: int, level: int) -> int:
        """How many packed bytes are read for one level: none if it is in memory."""
        key, unit = (index, level), self.run.space.units[index]
        if key in self._held:
            self._held.move_to_end(key)
            return 0
        self._held[key] = unit.num_weights * self.run.dtype.itemsize
        self._held_bytes += self._held[key]
        while self._held_bytes > self.limit_bytes and len(self._held) > 1:
            self._held_bytes -= self._held.popitem(last=False)[1]
        self.most_bytes = max(self.most_bytes, self._held_bytes)
        return unit.levels[level].size_bytes
