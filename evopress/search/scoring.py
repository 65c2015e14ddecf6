"""From a table of predicted switch effects to one score per level, lower is better."""

from collections.abc import Sequence
from dataclasses import dataclass

from evopress.search.effects import Effects, mean_effects
from evopress.search.knapsack import LevelScores
from evopress.space.units import Space


@dataclass(frozen=True)
class Scoring:
    """Weights of the two orders of a switch effect.

    A switch to a costlier level is scored first + `up_curvature` · second, any other one `down_slope` · first + second.
    Second-order terms that are losses are multiplied by a damping as well. Each of the `dampings` gives a proposal; the
    larger it is, the fewer units leave their level.
    """

    dampings: Sequence[float]
    up_curvature: float
    down_slope: float = 0.0


def level_scores(space: Space, tables: Sequence[Effects], scoring: Scoring, *, damping: float) -> LevelScores:
    """Scores of all switches from the last table's profile.

    The first order is that of the last table, the second order the mean over all tables.
    """
    profile, first = tables[-1].profile, tables[-1].first
    second = mean_effects(space, tables).second

    def score(unit: int, level: int) -> float:
        levels = space.units[unit].levels
        curvature = second[unit][level]
        if curvature > 0:  # it is negative if restoring a dropped sub-block helps; gains are not damped
            curvature *= damping
        if levels[level].cost > levels[profile[unit]].cost:
            return first[unit][level] + scoring.up_curvature * curvature
        return curvature + (scoring.down_slope * first[unit][level] if scoring.down_slope else 0.0)

    return [[score(unit, level) for level in range(len(space.units[unit].levels))] for unit in range(len(space))]
