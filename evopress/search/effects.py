"""Tables of predicted switch effects: how the KL changes when a single unit of a profile changes its level."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from evopress.search.base import SearchStep, Table, rows_of
from evopress.search.knapsack import LevelScores
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

    def counts(table: Effects, unit: int) -> bool:
        inside_dropped = (space.is_inside_dropped(unit, profile) for profile in (last.profile, table.profile))
        return table.profile[unit] == last.profile[unit] and (table is last or not any(inside_dropped))

    def mean(order: Callable[[Effects], LevelScores]) -> LevelScores:
        by_unit = ([order(table)[unit] for table in tables if counts(table, unit)] for unit in range(len(space)))
        return [[fmean(values) for values in zip(*rows, strict=True)] for rows in by_unit]

    return Effects(last.profile, mean(lambda table: table.first), mean(lambda table: table.second))
