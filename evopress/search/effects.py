"""Tables of predicted switch effects: how the KL changes when a single unit of a profile changes its level."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from evopress.search.base import SearchStep, Table, rows_of
from evopress.search.knapsack import LevelScores
from evopress.space.level_arrays import as_levels
from evopress.space.units import Profile, Space


@dataclass(frozen=True)
class TableSettings:
    """How a table is made. `draws` is the number of random vectors per token for the curvature.

    `excerpt` means the same as in `Batch`.
    """

    num_tokens: int
    draws: int
    excerpt: int | None


@dataclass(frozen=True)
class Effects:
    """The predicted change of the KL when a single unit of `profile` moves to a level: [unit][level].

    `first` has the first-order terms of the prediction and `second` the second-order terms.
    """

    profile: Profile
    first: LevelScores
    second: LevelScores


def predict_effects(space: Space, profile: Profile, settings: TableSettings) -> SearchStep[Effects]:
    """Ask for the effects of all switches from `profile`."""
    table = Table("switch_effects", settings.num_tokens, (float(settings.draws),), profile, settings.excerpt)
    rows = iter((yield from rows_of(table)))
    by_unit = [[next(rows) for _ in unit.levels] for unit in space.units]
    first, second = ([[row[order] for row in unit] for unit in by_unit] for order in (0, 1))
    return Effects(profile, first, second)


def mean_effects(space: Space, tables: Sequence[Effects]) -> Effects:
    """The effects at the profile of the last table, averaged over the tables.

    For each unit, an earlier table counts only if the unit has the same level there as in the last one, and is not
    inside a dropped sub-block in either.
    """
    last = tables[-1]
    counting = [_counting_units(space, table, last) for table in tables]

    def mean(order: Callable[[Effects], LevelScores]) -> LevelScores:
        scores = [order(table) for table in tables]
        return [
            _mean_row([rows[unit] for rows, counts in zip(scores, counting, strict=True) if counts[unit]])
            for unit in range(len(space))
        ]

    return Effects(last.profile, mean(lambda table: table.first), mean(lambda table: table.second))


def with_mean_curvature(space: Space, tables: Sequence[Effects]) -> Effects:
    """The first order of the last table, and the second order averaged over the tables, as in `mean_effects`."""
    return Effects(tables[-1].profile, tables[-1].first, mean_effects(space, tables).second)


def _counting_units(space: Space, table: Effects, last: Effects) -> list[bool]:
    """For each unit, whether `table` counts. The last table counts for all units."""
    if table is last:
        return [True] * len(space)
    before, now = as_levels(table.profile), as_levels(last.profile)
    inside_dropped = space.arrays.is_inside_dropped(before) | space.arrays.is_inside_dropped(now)
    counts: list[bool] = ((before == now) & ~inside_dropped).tolist()
    return counts


def _mean_row(rows: Sequence[list[float]]) -> list[float]:
    """The mean of each level."""
    return rows[0] if len(rows) == 1 else [fmean(values) for values in zip(*rows, strict=True)]
