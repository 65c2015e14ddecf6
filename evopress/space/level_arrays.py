"""Costs and sizes of all levels of a space as arrays, to add up profiles of many thousand units quickly."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

Levels = Int[np.ndarray, " units"]
"""One level index per unit, int64: a profile as an array."""


def as_levels(profile: Sequence[int] | np.ndarray) -> Levels:
    """The profile as an array."""
    return profile if isinstance(profile, np.ndarray) else np.fromiter(profile, dtype=np.int64, count=len(profile))


def padded(rows: Sequence[Sequence[int]]) -> Int[np.ndarray, "units levels"]:
    """One row per unit. Shorter rows are filled with zeros."""
    table = np.zeros((len(rows), max(map(len, rows), default=0)), dtype=np.int64)
    for index, row in enumerate(rows):
        table[index, : len(row)] = row
    return table


@dataclass(frozen=True)
class LevelArrays:
    """`costs` and `sizes_bytes` of every level, and the number of levels and the parent (-1: none) of every unit."""

    costs: Int[np.ndarray, "units levels"]
    sizes_bytes: Int[np.ndarray, "units levels"]
    num_levels: Int[np.ndarray, " units"]
    parents: Int[np.ndarray, " units"]

    def is_tradable(self, levels: Levels) -> Bool[np.ndarray, " units"]:
        """Whether each unit may trade levels: it is no parent and not inside a dropped one."""
        tradable = ~self.is_inside_dropped(levels)
        tradable[self.parents[self.parents >= 0]] = False
        return tradable

    def is_inside_dropped(self, levels: Levels) -> Bool[np.ndarray, " units"]:
        """Whether the parent of each unit is dropped."""
        return (self.parents >= 0) & (levels[self.parents] > 0)

    def chosen(self, table: Int[np.ndarray, "units levels"], levels: Levels) -> Int[np.ndarray, " units"]:
        """The entry of each unit's level in `costs` or `sizes_bytes`; 0 for units inside a dropped parent.

        Raises IndexError if a unit has no such level.
        """
        if (levels >= self.num_levels).any():
            raise IndexError("the profile has a level that its unit does not have")
        return np.where(self.is_inside_dropped(levels), 0, table[np.arange(len(levels)), levels])
