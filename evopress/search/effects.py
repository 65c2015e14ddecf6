"""Tables of what every single switch away from a profile would do, to first and to second order."""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from statistics import fmean

from evopress.search.base import Answer, Question, Table, rows_of
from evopress.search.proposals import Scores
from evopress.space.units import Profile, Space


@dataclass(frozen=True)
class Effects:
    """[unit][level]: predicted change of the KL when the unit alone leaves `profile`, to first and to second order."""

    profile: Profile
    first: Scores
    second: Scores


def effects_at(
    space: Space, profile: Profile, num_tokens: int, draws: int, excerpt: int | None
) -> Generator[Question, Answer, Effects]:
    """Asks for the table of all switches at `profile`."""
    rows = yield from rows_of(Table("switch_effects", num_tokens, (float(draws),), profile, excerpt))
    flat = iter(rows)
    by_unit = [[next(flat) for _ in unit.levels] for unit in space.units]
    first, second = ([[row[order] for row in unit] for unit in by_unit] for order in (0, 1))
    return Effects(profile, first, second)


def averaged(space: Space, tables: list[Effects]) -> Effects:
    """Every effect the mean over the tables in which its unit left the same level as in the last one."""
    last = tables[-1]

    def is_alike(table: Effects, unit: int) -> bool:
        gone = space.is_inside_dropped(unit, last.profile), space.is_inside_dropped(unit, table.profile)
        return table.profile[unit] == last.profile[unit] and (table is last or not any(gone))

    def mean(rows: Callable[[Effects], Scores]) -> Scores:
        alike = ([rows(table)[unit] for table in tables if is_alike(table, unit)] for unit in range(len(space)))
        return [[fmean(values) for values in zip(*of_unit, strict=True)] for of_unit in alike]

    return Effects(last.profile, mean(lambda table: table.first), mean(lambda table: table.second))
