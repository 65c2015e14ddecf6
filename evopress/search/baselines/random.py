"""Best of N random profiles, the simplest baseline."""

from random import Random as RandomGenerator

from pydantic import Field

from evopress.runtime.config_class import config_class
from evopress.search.base import Batch, Search, SearchRun, fitness_of
from evopress.search.mutation import distinct_profiles, mutate
from evopress.search.selection import best_first, check_any_finite
from evopress.search.start_profiles import random_profile, uniform_profile
from evopress.space.budget import Budget
from evopress.space.units import Profile, Space


@config_class
class Random(Search):
    """The fittest of `candidates` random profiles within the budget, compared on one minibatch of `tokens`.

    If a uniform profile spends the budget, each random profile is the result of `walk` mutations of it.
    """

    candidates: int = Field(gt=0)
    tokens: int = Field(gt=0)
    walk: int = Field(default=30, gt=0)

    def num_questions(self, space: Space, budget: Budget) -> int:
        return 1

    def run(self, space: Space, budget: Budget, rng: RandomGenerator) -> SearchRun:
        candidates = distinct_profiles(lambda: self._draw(space, budget, rng), self.candidates, exclude=set())
        fitness = yield from fitness_of(Batch(tuple(candidates), self.tokens, f"{len(candidates)} random profiles"))
        check_any_finite(fitness)
        return best_first(candidates, fitness)[0]

    def _draw(self, space: Space, budget: Budget, rng: RandomGenerator) -> Profile:
        profile = uniform_profile(space, budget)
        if profile is None:
            return random_profile(space, budget, rng)
        caps = budget.caps(space)
        for _ in range(self.walk):
            profile = mutate(space, caps, profile, rng=rng, max_switches=1) or profile
        return profile
