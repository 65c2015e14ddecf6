"""Repairs of the budget: lower units until a cap holds, raise units until its slack is spent.

To raise a unit means one level up, towards the least compressed one; to lower it means one level down. The functions
change an array of levels in place.
"""

from collections.abc import Callable, Iterable, Sequence
from random import Random

import numpy as np

from evopress.space.budget import Cap
from evopress.space.level_arrays import Levels, as_levels
from evopress.space.units import Space


def cost_of_raising(space: Space, unit: int, level: int) -> int:
    """Extra cost of the unit when it goes one level up from `level`."""
    return space.units[unit].levels[level - 1].cost - space.units[unit].levels[level].cost


def raisable_units(space: Space, caps: Sequence[Cap], profile: Sequence[int] | Levels) -> list[int]:
    """The units that can go one level up within the caps."""
    levels, costs = as_levels(profile), space.arrays.costs
    units = np.arange(len(levels))
    extra = costs[units, levels - 1] - costs[units, levels]
    is_movable = space.arrays.is_tradable(levels) & (levels > 0)
    raisable: list[int] = []
    for cap in caps:
        movable = cap.indices[is_movable[cap.indices]]
        raisable += movable[extra[movable] <= cap.slack(space, levels)].tolist()
    return raisable


def raise_in_order(space: Space, caps: Sequence[Cap], levels: Levels, *, order: Iterable[int]) -> None:
    """Raise each of these units, none of which is at its top level, by one level, if it fits under the caps."""
    slacks = [cap.slack(space, levels) for cap in caps]
    for unit in order:
        extra = cost_of_raising(space, unit, int(levels[unit]))
        concerned = [number for number, cap in enumerate(caps) if unit in cap.member_set]
        if any(extra <= slacks[number] for number in concerned):
            levels[unit] -= 1
            for number in concerned:
                slacks[number] -= extra


def raise_until_spent(space: Space, caps: Sequence[Cap], levels: Levels, *, pick: Callable[[list[int]], int]) -> None:
    """Raise the unit that `pick` chooses among those that can be raised, until there are none."""
    while raisable := raisable_units(space, caps, levels):
        levels[pick(raisable)] -= 1


def lower_at_random(space: Space, cap: Cap, levels: Levels, *, candidates: np.ndarray, rng: Random) -> set[int]:
    """Lower random units of `candidates`, one level at a time, until `cap` holds or all are at their last level.

    Returns the units that were lowered.
    """
    last_levels = space.arrays.num_levels - 1
    lowerable: list[int] = candidates[levels[candidates] < last_levels[candidates]].tolist()
    lowered: set[int] = set()
    slack = cap.slack(space, levels)
    while slack < 0 and lowerable:
        place = rng.randrange(len(lowerable))
        unit = lowerable[place]
        levels[unit] += 1
        slack += cost_of_raising(space, unit, int(levels[unit]))
        lowered.add(unit)
        if levels[unit] == last_levels[unit]:
            del lowerable[place]
    return lowered


def drop_in_order(space: Space, cap: Cap, levels: Levels, *, order: Sequence[int]) -> None:
    """Drop the sub-blocks of `order` one after another until `cap` holds. Those that must be kept are skipped."""
    for unit in order:
        if cap.slack(space, levels) < 0 and len(space.units[unit].levels) > 1:
            levels[unit] = 1
