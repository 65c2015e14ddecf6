"""The same level for every unit: a baseline without a search."""

from random import Random

from evopress.runtime.config_class import config_class
from evopress.search.base import Search, SearchRun
from evopress.search.start_profiles import evenly_spaced_profile
from evopress.space.budget import Budget
from evopress.space.units import Space


@config_class
class Uniform(Search):
    """Asks no questions. If no uniform profile spends the budget, some evenly spaced units are one level lower."""

    def num_questions(self, space: Space, budget: Budget) -> int:
        return 0

    def run(self, space: Space, budget: Budget, rng: Random) -> SearchRun:
        return evenly_spaced_profile(space, budget)
        yield  # makes this a generator
