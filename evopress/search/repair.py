"""Repairs of the budget: lower units until a cap holds, raise units until its slack is spent.

To raise a unit means one level up, towards the least compressed one; to lower it means one level down. The functions
change a list of levels in place.
"""

from collections.abc import Callable, Sequence
from random import Random

from evopress.space.budget import Cap
from evopress.space.units import Space


def cost_of_raising(space: Space, unit: int, level: int) -> int:
    """Extra cost of the unit when it goes one level up from `level`."""
    return space.units[unit].levels[level - 1].cost - space.units[unit].levels[level].cost


def raisable_units(space: Space, caps: Sequence[Cap], levels: Sequence[int]) -> list[int]:
    """The units that can go one level up within the caps."""
    slack_of: dict[int, int] = {}
    for cap in caps:
        slack_of |= dict.fromkeys(space.tradable_units(levels, cap.members), cap.slack(space, levels))
    return [i for i in slack_of if levels[i] > 0 and cost_of_raising(space, i, levels[i]) <= slack_of[i]]


def can_be_raised(space: Space, caps: Sequence[Cap], levels: Sequence[int], *, unit: int) -> bool:
    """Whether the unit, which is not at its top level, can go one level up within the caps."""
    extra = cost_of_raising(space, unit, levels[unit])
    return any(unit in cap.members and extra <= cap.slack(space, levels) for cap in caps)


def raise_until_spent(
    space: Space, caps: Sequence[Cap], levels: list[int], *, pick: Callable[[list[int]], int]
) -> None:
    """Raise the unit that `pick` chooses among those that can be raised, until there are none."""
    while raisable := raisable_units(space, caps, levels):
        levels[pick(raisable)] -= 1


def lower_at_random(space: Space, cap: Cap, levels: list[int], *, candidates: Sequence[int], rng: Random) -> set[int]:
    """Lower random units of `candidates`, one level at a time, until `cap` holds or all are at their last level.

    Returns the units that were lowered.
    """
    lowered: set[int] = set()
    slack = cap.slack(space, levels)
    while slack < 0:
        lowerable = [i for i in candidates if levels[i] < len(space.units[i].levels) - 1]
        if not lowerable:
            break
        unit = rng.choice(lowerable)
        levels[unit] += 1
        slack += cost_of_raising(space, unit, levels[unit])
        lowered.add(unit)
    return lowered


def drop_in_order(space: Space, cap: Cap, levels: list[int], *, order: Sequence[int]) -> None:
    """Drop the sub-blocks of `order` one after another until `cap` holds. Those that must be kept are skipped."""
    for unit in order:
        if cap.slack(space, levels) < 0 and len(space.units[unit].levels) > 1:
            levels[unit] = 1
