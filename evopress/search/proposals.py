"""From scores of single levels to whole profiles within caps, and what the caps may be on the way there."""

from math import inf, isnan
from random import Random

from evopress.search.baselines.additive import knapsack
from evopress.space.budget import Cap
from evopress.space.units import Profile, Space

Scores = list[list[float]]
"""[unit][level]: what going there would do to the fitness; 0 at the current level."""


def group_caps(space: Space, profile: Profile) -> tuple[Cap, ...]:
    """One cap per trade group, at what the group costs in `profile`."""
    return tuple(Cap(members, space.cost(profile, members)) for members in space.trade_groups.values())


def towards(space: Space, caps: tuple[Cap, ...], profile: Profile, steps: int) -> tuple[Cap, ...]:
    """Caps one of `steps` equal steps from what `profile` costs down to `caps`; these, where it is within them."""

    def lowered(cap: Cap) -> Cap:
        excess = max(0, -cap.slack(space, profile))
        return Cap(cap.members, cap.max_cost + excess - -(-excess // steps))

    return tuple(map(lowered, caps))


def thawed(space: Space, caps: tuple[Cap, ...], profile: Profile, share: float, rng: Random) -> tuple[Cap, ...]:
    """The caps on a random `share` of the units, while the others keep their levels in `profile`."""
    found = []
    for cap in caps:
        members = tuple(unit for unit in cap.members if rng.random() < share)
        held = space.cost(profile, set(cap.members) - set(members))
        found.append(Cap(members, cap.max_cost - held))
    return tuple(found)


def proposed(space: Space, caps: tuple[Cap, ...], profile: Profile, scores: Scores) -> Profile:
    """The profile of least summed score under `caps`; units outside them stay as they are in `profile`."""
    caps = tuple(cap for cap in caps if cap.members)
    best = knapsack(space, caps, scores)
    moving = {unit for cap in caps for unit in cap.members}
    return tuple(best[i] if i in moving else level for i, level in enumerate(profile))


def brought(space: Space, caps: tuple[Cap, ...], profile: Profile, scores: Scores) -> Profile:
    """`profile` within the caps, as far as levels alone can bring it there: the switches of the best score per cost."""
    for cap in caps:
        while cap.slack(space, profile) < 0:
            lowered = _best_switch(space, cap, profile, scores, (-inf, -1))
            if lowered == profile:
                break
            profile = lowered
    return spent(space, caps, profile, scores)


def spent(space: Space, caps: tuple[Cap, ...], profile: Profile, scores: Scores) -> Profile:
    """Spend what a cap leaves over: of the switches that fit, make that of the best score per cost, until none fits."""
    for cap in caps:
        while True:
            raised = _best_switch(space, cap, profile, scores, (1, cap.slack(space, profile)))
            if raised == profile:
                break
            profile = raised
    return profile


def _best_switch(space: Space, cap: Cap, profile: Profile, scores: Scores, extra_cost: tuple[float, float]) -> Profile:
    """`profile` with the switch of the best score per cost, of those that cost so much more; itself if none does."""
    fitting = [
        ((scores[unit][level] - scores[unit][profile[unit]]) / abs(extra), unit, level)
        for unit in space.tradable_units(profile, cap.members)
        for level, option in enumerate(space.units[unit].levels)
        for extra in [option.cost - space.units[unit].levels[profile[unit]].cost]
        if extra_cost[0] <= extra <= extra_cost[1]
    ]
    if not fitting:
        return profile
    _, unit, level = min(fitting, key=lambda found: (isnan(found[0]), found))
    return (*profile[:unit], level, *profile[unit + 1 :])
