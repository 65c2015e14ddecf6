"""Switches: changes of a single unit's level."""

from collections.abc import Sequence

from evopress.space.budget import Cap
from evopress.space.units import Profile, Space

Switch = tuple[int, int]
"""A unit and its new level."""


def switched(space: Space, profile: Profile, unit: int, level: int) -> Profile:
    """`profile` with one unit at another level."""
    return space.normalized((*profile[:unit], level, *profile[unit + 1 :]))


def all_switched(space: Space, profile: Profile) -> list[Profile]:
    """All profiles that differ from `profile` in the level of one unit."""
    return [
        switched(space, profile, index, level)
        for index, unit in enumerate(space.units)
        for level in range(len(unit.levels))
        if level != profile[index] and not space.is_inside_dropped(index, profile)
    ]


def neighbouring_switches(space: Space, caps: Sequence[Cap], profile: Profile) -> tuple[list[Switch], list[Switch]]:
    """All switches by one level of the units under the caps: first those to a costlier level, then the others."""
    ups: list[Switch] = []
    downs: list[Switch] = []
    for unit in sorted(unit for cap in caps for unit in cap.members):
        levels, current = space.units[unit].levels, profile[unit]
        for level in (current - 1, current + 1):
            if 0 <= level < len(levels):
                (ups if levels[level].cost > levels[current].cost else downs).append((unit, level))
    return ups, downs
