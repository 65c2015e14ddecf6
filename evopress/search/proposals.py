"""Profiles proposed by level scores: by solving a knapsack, or by making the switches of the best score per cost."""

from collections.abc import Sequence
from itertools import product
from math import inf

from evopress.search.caps import Caps, caps_with_and_without_drops
from evopress.search.effects import Effects, with_mean_curvature
from evopress.search.knapsack import LevelScores, solve_knapsack
from evopress.search.scoring import Scoring, level_scores
from evopress.search.switch_queue import SwitchQueue
from evopress.space.budget import Cap
from evopress.space.units import Profile, Space


def best_by_scores(space: Space, caps: Sequence[Cap], profile: Profile, *, scores: LevelScores) -> Profile:
    """The profile of least summed score within `caps`. Units under no cap keep their levels in `profile`."""
    caps = tuple(cap for cap in caps if cap.members)
    best = solve_knapsack(space, caps, scores)
    movable = {unit for cap in caps for unit in cap.members}
    return tuple(best[i] if i in movable else level for i, level in enumerate(profile))


def fit_to_caps(space: Space, caps: Sequence[Cap], profile: Profile, *, scores: LevelScores) -> Profile:
    """Lower `profile` until the caps hold, then spend the slack, always by the switch of the best score per cost.

    Drops stay as they are, so the result may still exceed a cap.
    """
    for cap in caps:
        profile = _lower(space, cap, profile, scores=scores)
    return spend_slack(space, caps, profile, scores=scores)


def spend_slack(space: Space, caps: Sequence[Cap], profile: Profile, *, scores: LevelScores) -> Profile:
    """Make the switch to a costlier level with the best score per cost that fits under the caps, until none fits."""
    for cap in caps:
        slack, levels = cap.slack(space, profile), list(profile)
        units = space.tradable_units(profile, cap.members)
        queue = SwitchQueue(space, levels, units=units, scores=scores, costs=(1, slack))
        while (switch := queue.pop(1, slack)) is not None:
            slack -= queue.make(switch)
        profile = tuple(levels)
    return profile


def _lower(space: Space, cap: Cap, profile: Profile, *, scores: LevelScores) -> Profile:
    """Make the switch to a cheaper level with the best score per cost, until the cap holds."""
    slack, levels = cap.slack(space, profile), list(profile)
    units = space.tradable_units(profile, cap.members)
    queue = SwitchQueue(space, levels, units=units, scores=scores, costs=(-inf, -1))
    while slack < 0 and (switch := queue.pop(-inf, -1)) is not None:
        slack -= queue.make(switch)
    return tuple(levels)


def path_from_table(space: Space, caps: Caps, tables: Sequence[Effects], *, scoring: Scoring) -> list[Profile]:
    """The distinct proposals of the last table, one for each damping. The profile of the table itself is left out.

    If there are both levels and drops, each damping gives two proposals: one in which drops may change, and one in
    which they stay as they are.
    """
    profile, effects = tables[-1].profile, with_mean_curvature(space, tables)
    path = []
    for damping, caps_to_meet in product(scoring.dampings, caps_with_and_without_drops(space, caps, profile)):
        scores = level_scores(space, effects, scoring, damping=damping)
        proposal = best_by_scores(space, caps_to_meet, profile, scores=scores)
        path.append(spend_slack(space, caps_to_meet, proposal, scores=scores))
    return [proposal for proposal in dict.fromkeys(path) if proposal != profile]
