"""The same level for every unit, the baseline that needs no search."""

from random import Random

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as checked_dataclass

from evopress.search.base import Search, SearchRun
from evopress.search.moves import evenly_spaced_profile
from evopress.space.budget import Budget
from evopress.space.units import Space


@checked_dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Uniform(Search):
    """Asks nothing. Where no uniform profile spends the budget, evenly spaced units are one level lower."""

    def num_questions(self, space: Space, budget: Budget) -> int:
        return 0

    def run(self, space: Space, budget: Budget, rng: Random) -> SearchRun:
        return evenly_spaced_profile(space, budget)
        yield  # makes this a generator
