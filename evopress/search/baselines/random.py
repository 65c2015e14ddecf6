"""Best of N random profiles, the baseline that needs no idea."""

from random import Random as Generator

from pydantic import Field

from evopress.runtime.config_class import config_class
from evopress.search.base import Batch, Search, SearchRun, best_first, check_numbers, fitness_of
from evopress.search.moves import distinct, mutate, random_profile, uniform_profile
from evopress.space.budget import Budget
from evopress.space.units import Profile, Space


@config_class
class Random(Search):
    """`candidates` random profiles that spend the budget, compared on one minibatch of `tokens`.

    Where the uniform profile spends the budget, random profiles are `walk` mutations away from it.
    """

    candidates: int = Field(gt=0)
    tokens: int = Field(gt=0)
    walk: int = Field(default=30, gt=0)

    def num_questions(self, space: Space, budget: Budget) -> int:
        return 1

    def run(self, space: Space, budget: Budget, rng: Generator) -> SearchRun:
        candidates = distinct(lambda: self._draw(space, budget, rng), self.candidates, exclude=set())
        fitness = yield from fitness_of(Batch(tuple(candidates), self.tokens, f"{len(candidates)} random profiles"))
        check_numbers(fitness)
        return best_first(candidates, fitness)[0]

    def _draw(self, space: Space, budget: Budget, rng: Generator) -> Profile:
        profile = uniform_profile(space, budget)
        if profile is None:
            return random_profile(space, budget, rng)
        caps = budget.caps(space)
        for _ in range(self.walk):
            profile = mutate(space, caps, profile, rng, max_switches=1) or profile
        return profile
