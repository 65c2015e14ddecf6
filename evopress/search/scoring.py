"""Turns a table of predicted switch effects into one score per level. Lower is better."""

from collections.abc import Sequence
from dataclasses import dataclass

from evopress.search.effects import Effects, mean_effects
from evopress.search.knapsack import LevelScores
from evopress.space.units import Space


@dataclass(frozen=True)
class Scoring:
    """Weights of the first and second order of a switch effect.

    The score of a switch to a costlier level is first + `up_curvature` · second. The score of any other switch is
    `down_slope` · first + second. Positive second-order terms, which are losses, are also multiplied by a damping. Each
    of the `dampings` gives a proposal. The larger the damping, the fewer units leave their level.
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
        if curvature > 0:  # only losses are damped; a negative value is the gain of restoring a dropped sub-block
            curvature *= damping
        if levels[level].cost > levels[profile[unit]].cost:
            return first[unit][level] + scoring.up_curvature * curvature
        return curvature + (scoring.down_slope * first[unit][level] if scoring.down_slope else 0.0)

    return [[score(unit, level) for level in range(len(space.units[unit].levels))] for unit in range(len(space))]
