"""EvoPress: a (1+λ) evolutionary search with level-switch mutation and multi-step selection.

Source: arXiv 2410.14649, Algorithms 1 and 2::

    parent ← best of the initial candidates on initial_tokens
    repeat generations times:
        offspring ← λ distinct mutants of the parent
        for each stage (survivors_i, tokens_i):
            in the last stage add the parent
            draw one minibatch of tokens_i tokens
            keep the survivors_i fittest
        parent ← the survivor

There are two additions, which are off by default. With `population` > 1, several parents survive each generation. With
`maximize`, the search looks for the worst profile, as the paper does to show how much profiles differ.
"""

from itertools import pairwise
from random import Random

from pydantic import Field, model_validator

from evopress.runtime.config_class import config_class
from evopress.search.base import Batch, Search, SearchRun, SearchStep, fitness_of
from evopress.search.mutation import distinct_profiles, mutants
from evopress.search.selection import Stage, best_first, check_any_finite, select_survivors
from evopress.search.start_profiles import random_profile, uniform_profile
from evopress.space.budget import Budget
from evopress.space.units import Profile, Space


@config_class
class Evolution(Search):
    """The paper's search.

    With `generations: null`, there are k(n−k)/1.5 generations, the paper's number for dropping k of the n units in a
    trade group. A search with null raises ValueError if the budget is not one of drops.

    The search starts from the uniform profile that spends the budget. If there is none, it starts from the best of
    `initial_candidates` random profiles, compared on `initial_tokens`.
    """

    generations: int | None = Field(ge=0)
    offspring: int = Field(gt=0)
    stages: list[Stage] = Field(min_length=1)
    initial_candidates: int = Field(gt=0)
    initial_tokens: int = Field(gt=0)
    max_switches: int = Field(default=3, gt=0)
    population: int = Field(default=1, gt=0)
    maximize: bool = False

    @model_validator(mode="after")
    def _survivors_shrink(self) -> "Evolution":
        survivors = [self.offspring, *(stage.survivors for stage in self.stages)]
        if any(later > earlier for earlier, later in pairwise(survivors)):
            raise ValueError(
                f"search.stages keep {survivors[1:]} of {self.offspring} offspring, but no stage may keep more "
                f"candidates than the stage before: lower its survivors or raise search.offspring"
            )
        if self.stages[-1].survivors != self.population:
            raise ValueError(
                f"the last of search.stages keeps {self.stages[-1].survivors} candidates but search.population is "
                f"{self.population}: make them equal"
            )
        return self

    def num_questions(self, space: Space, budget: Budget) -> int:
        num_initial = 0 if uniform_profile(space, budget) else 1
        return num_initial + self._num_generations(space, budget) * len(self.stages)

    def run(self, space: Space, budget: Budget, rng: Random) -> SearchRun:
        caps = budget.caps(space)
        parents = yield from self._initial_parents(space, budget, rng)
        num_generations = self._num_generations(space, budget)
        for generation in range(1, num_generations + 1):
            offspring = mutants(space, caps, parents, count=self.offspring, rng=rng, max_switches=self.max_switches)
            if not offspring:
                break  # no other profile is within the budget
            label = f"generation {generation}/{num_generations}"
            parents = yield from select_survivors(
                parents, offspring, stages=self.stages, label=label, sign=self._sign()
            )
        return parents[0]

    def _initial_parents(self, space: Space, budget: Budget, rng: Random) -> SearchStep[list[Profile]]:
        uniform = uniform_profile(space, budget)
        if uniform:
            return [uniform]
        candidates = distinct_profiles(
            lambda: random_profile(space, budget, rng), self.initial_candidates, exclude=set()
        )
        batch = Batch(tuple(candidates), self.initial_tokens, "initial candidates", decisive=not self.maximize)
        fitness = yield from fitness_of(batch)
        check_any_finite(fitness)
        return best_first(candidates, fitness, self._sign())[: self.population]

    def _sign(self) -> float:
        return -1.0 if self.maximize else 1.0

    def _num_generations(self, space: Space, budget: Budget) -> int:
        if self.generations is not None:
            return self.generations
        if budget.metric != "drop":
            raise ValueError("search.generations=null is for a budget of drops only: set search.generations")
        num_units = len(space) // len(space.trade_groups)
        num_dropped = budget.achieved(space, random_profile(space, budget, Random(0))) * num_units
        return round(num_dropped * (num_units - num_dropped) / 1.5)
