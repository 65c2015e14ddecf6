"""Counts the levels that would be read from the database and decoded."""

from collections.abc import Iterable, Sequence
from functools import partial
from operator import itemgetter

from evopress.database.cache import BlockCache
from evopress.planning.planned_run import PlannedRun
from evopress.space.units import OUTSIDE, Profile


class DecodedCount:
    """Counts what `DecodedLevels` would decode if `evaluator.cache_gb` of the weights are kept."""

    def __init__(self, run: PlannedRun):
        self.run = run
        self.most_bytes = 0
        """The largest memory that decoded levels took."""
        self._kept: BlockCache[int] = BlockCache(int(run.job.evaluator.cache_gb * 1e9), int)
        self._read_bytes = 0.0
        layers = [index for index, unit in enumerate(run.space.units) if unit.layers]
        self._units = [(block, index) for index in layers for block in _blocks_of(run, index)]
        """(block, unit) for each part of a unit, in the order in which blocks are visited."""
        self._units.sort(key=itemgetter(0))

    def use(self, profiles: Sequence[Profile]) -> int:
        """Visit every block, with the levels of all profiles. Returns how many packed bytes are read."""
        before = self._read_bytes
        inside = self.run.space.is_inside_dropped
        for block, index in self._units:
            kept = [profile for profile in profiles if not inside(index, profile)]
            self._get(block, index, sorted({profile[index] for profile in kept}))
        return round(self._read_bytes - before)

    def use_all(self, profile: Profile) -> int:
        """Visit every block from last to first, with all levels of the units that `profile` keeps, as a table does."""
        before = self._read_bytes
        for block, index in reversed(self._units):
            if not self.run.space.is_inside_dropped(index, profile):
                self._get(block, index, range(len(self.run.space.units[index].levels)))
        return round(self._read_bytes - before)

    def _get(self, block: int, index: int, levels: Iterable[int]) -> None:
        unit = self.run.space.units[index]
        share = 1 / len(_blocks_of(self.run, index))

        def decode(level: int) -> int:
            self._read_bytes += share * unit.levels[level].size_bytes
            return round(share * unit.num_weights * self.run.dtype.itemsize)

        for level in levels:
            self._kept.get(block, (index, level), partial(decode, level))
            self.most_bytes = max(self.most_bytes, self._kept.kept_bytes)


def _blocks_of(run: PlannedRun, index: int) -> Sequence[int]:
    return run.space.units[index].blocks or (OUTSIDE,)
