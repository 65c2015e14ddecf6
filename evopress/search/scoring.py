"""Turns a table of predicted switch effects into one score per level. Lower is better."""

from collections.abc import Sequence
from dataclasses import dataclass

from evopress.search.effects import Effects
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


def level_scores(space: Space, effects: Effects, scoring: Scoring, *, damping: float) -> LevelScores:
    """Scores of all switches from the profile of `effects`."""
    up_curvature, down_slope = scoring.up_curvature, scoring.down_slope

    def score(first: float, curvature: float, *, is_costlier: bool) -> float:
        if curvature > 0:  # only losses are damped; a negative value is the gain of restoring a dropped sub-block
            curvature *= damping
        if is_costlier:
            return first + up_curvature * curvature
        return curvature + (down_slope * first if down_slope else 0.0)

    by_unit = zip(space.units, effects.profile, effects.first, effects.second, strict=True)
    return [
        [
            score(slope, curvature, is_costlier=level.cost > unit.levels[current].cost)
            for level, slope, curvature in zip(unit.levels, first, second, strict=True)
        ]
        for unit, current, first, second in by_unit
    ]
