"""Caps other than those of the budget: relaxed at first, one per trade group, or on some of the units only."""

from collections.abc import Sequence
from random import Random

from evopress.space.budget import Cap
from evopress.space.units import Profile, Space

Caps = tuple[Cap, ...]


def group_caps(space: Space, profile: Profile) -> Caps:
    """One cap per trade group: the group's cost in `profile`."""
    return tuple(Cap(members, space.cost(profile, members)) for members in space.trade_groups.values())


def tightened_caps(space: Space, caps: Sequence[Cap], profile: Profile, *, num_steps: int) -> Caps:
    """The caps after the first of `num_steps` equal steps from the cost of `profile` down to `caps`.

    A cap that `profile` already meets is not changed.
    """

    def tightened(cap: Cap) -> Cap:
        excess = max(0, -cap.slack(space, profile))
        return Cap(cap.members, cap.max_cost + excess - -(-excess // num_steps))

    return tuple(map(tightened, caps))


def caps_on_random_units(space: Space, caps: Sequence[Cap], profile: Profile, *, share: float, rng: Random) -> Caps:
    """The caps on a random selection of units, while the other units stay as in `profile`.

    Each unit is selected with the probability `share`.
    """
    restricted = []
    for cap in caps:
        members = tuple(unit for unit in cap.members if rng.random() < share)
        cost_of_others = space.cost(profile, set(cap.members) - set(members))
        restricted.append(Cap(members, cap.max_cost - cost_of_others))
    return tuple(restricted)


def caps_on_levels(space: Space, caps: Sequence[Cap], profile: Profile) -> Caps:
    """The caps on the units whose levels can change while all drops stay as in `profile`."""

    def on_levels(cap: Cap) -> Cap:
        members = tuple(space.tradable_units(profile, cap.members))
        return Cap(members, cap.max_cost - space.cost(profile, set(cap.members) - set(members)))

    return tuple(map(on_levels, caps))


def caps_with_and_without_drops(space: Space, caps: Caps, profile: Profile) -> list[Caps]:
    """The caps, followed by the caps on levels alone if these differ and can be met."""
    on_levels = caps_on_levels(space, caps, profile)
    movable = {index for cap in on_levels for index in cap.members}
    lowest = [len(u.levels) - 1 if i in movable else profile[i] for i, u in enumerate(space.units)]
    if on_levels == caps or any(cap.slack(space, lowest) < 0 for cap in on_levels):
        return [caps]
    return [caps, on_levels]
