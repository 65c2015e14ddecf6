"""Profiles proposed by level scores: an exact knapsack, and repairs of the budget by score per cost."""

from collections.abc import Sequence
from itertools import product
from math import inf, isnan

from evopress.search.caps import Caps, caps_with_and_without_drops
from evopress.search.effects import Effects
from evopress.search.knapsack import LevelScores, solve_knapsack
from evopress.search.scoring import Scoring, level_scores
from evopress.space.budget import Cap
from evopress.space.units import Profile, Space


def best_by_scores(space: Space, caps: Sequence[Cap], profile: Profile, *, scores: LevelScores) -> Profile:
    """The profile of least summed score within `caps`. Units that are under no cap stay as in `profile`."""
    caps = tuple(cap for cap in caps if cap.members)
    best = solve_knapsack(space, caps, scores)
    movable = {unit for cap in caps for unit in cap.members}
    return tuple(best[i] if i in movable else level for i, level in enumerate(profile))


def fit_to_caps(space: Space, caps: Sequence[Cap], profile: Profile, *, scores: LevelScores) -> Profile:
    """`profile` lowered until the caps hold, then with the slack spent, by the switches of the best score per cost.

    Drops stay as they are, so the result may still break a cap.
    """
    for cap in caps:
        while cap.slack(space, profile) < 0:
            lowered = _best_switch(space, cap, profile, scores=scores, extra_cost=(-inf, -1))
            if lowered == profile:
                break
            profile = lowered
    return spend_slack(space, caps, profile, scores=scores)


def spend_slack(space: Space, caps: Sequence[Cap], profile: Profile, *, scores: LevelScores) -> Profile:
    """Make the switch to a costlier level with the best score per cost that fits, until none fits within the caps."""
    for cap in caps:
        while True:
            slack = cap.slack(space, profile)
            raised = _best_switch(space, cap, profile, scores=scores, extra_cost=(1, slack))
            if raised == profile:
                break
            profile = raised
    return profile


def path_from_table(space: Space, caps: Caps, tables: Sequence[Effects], *, scoring: Scoring) -> list[Profile]:
    """Distinct proposals of the last table, one for each damping, from bold to cautious; without its own profile.

    If there are both levels and drops, each damping gives two: with its drops, and with the drops left as they are.
    """
    profile = tables[-1].profile
    path = []
    for damping, caps_to_meet in product(scoring.dampings, caps_with_and_without_drops(space, caps, profile)):
        scores = level_scores(space, tables, scoring, damping=damping)
        proposal = best_by_scores(space, caps_to_meet, profile, scores=scores)
        path.append(spend_slack(space, caps_to_meet, proposal, scores=scores))
    return [proposal for proposal in dict.fromkeys(path) if proposal != profile]


def _best_switch(
    space: Space, cap: Cap, profile: Profile, *, scores: LevelScores, extra_cost: tuple[float, float]
) -> Profile:
    """`profile` after the switch with the best score per cost. `extra_cost` is the range of costs it may add.

    Returns `profile` itself if there is no such switch.
    """
    fitting = [
        ((scores[unit][level] - scores[unit][profile[unit]]) / abs(extra), unit, level)
        for unit in space.tradable_units(profile, cap.members)
        for level, option in enumerate(space.units[unit].levels)
        for extra in [option.cost - space.units[unit].levels[profile[unit]].cost]
        if extra_cost[0] <= extra <= extra_cost[1]
    ]
    if not fitting:
        return profile
    _, unit, level = min(fitting, key=lambda switch: (isnan(switch[0]), switch))
    return (*profile[:unit], level, *profile[unit + 1 :])
