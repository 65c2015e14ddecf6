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

We differ in two ways that leave this default unchanged: `population` parents may live on (the last stage then keeps
that many), and `maximize` looks for the worst profile, as the paper does to show how far profiles differ.
"""

from collections.abc import Generator
from itertools import pairwise
from random import Random

from pydantic import Field, model_validator

from evopress.runtime.config_class import config_class
from evopress.search.base import Answer, Batch, Question, Search, SearchRun, best_first, check_numbers, fitness_of
from evopress.search.moves import distinct, mutants, random_profile, uniform_profile
from evopress.space.budget import Budget
from evopress.space.units import Profile, Space


@config_class
class Stage:
    """One step of the selection: how many candidates survive it, and on how many tokens they are compared."""

    survivors: int = Field(gt=0)
    tokens: int = Field(gt=0)


@config_class
class Evolution(Search):
    """The paper's search. `generations: null` takes k(n−k)/1.5, the paper's number for dropping k of n sub-blocks.

    Raises ValueError for null where nothing is dropped.

    `initial_candidates` random start profiles are compared on `initial_tokens` where the uniform profile does not
    exist or does not spend the budget.
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
                f"search.stages must keep fewer and fewer of the {self.offspring} offspring, not {survivors[1:]}"
            )
        if self.stages[-1].survivors != self.population:
            raise ValueError(
                f"the last of search.stages keeps {self.stages[-1].survivors} candidates but search.population is "
                f"{self.population}: make them equal"
            )
        return self

    def num_questions(self, space: Space, budget: Budget) -> int:
        starts = 0 if uniform_profile(space, budget) else 1
        return starts + self._num_generations(space, budget) * len(self.stages)

    def run(self, space: Space, budget: Budget, rng: Random) -> SearchRun:
        caps = budget.caps(space)
        parents = yield from self._initial(space, budget, rng)
        num_generations = self._num_generations(space, budget)
        for generation in range(1, num_generations + 1):
            candidates = mutants(space, caps, parents, self.offspring, rng, self.max_switches)
            if not candidates:
                break  # the budget leaves no other profile
            for number, stage in enumerate(self.stages, start=1):
                if number == len(self.stages):
                    candidates = parents + candidates
                label = f"generation {generation}/{num_generations}, stage {number}/{len(self.stages)}"
                fitness = yield from fitness_of(Batch(tuple(candidates), stage.tokens, label))
                if number == len(self.stages):
                    check_numbers(fitness)
                candidates = self._fittest(candidates, fitness, stage.survivors)
            parents = candidates
        return parents[0]

    def _initial(self, space: Space, budget: Budget, rng: Random) -> Generator[Question, Answer, list[Profile]]:
        uniform = uniform_profile(space, budget)
        if uniform:
            return [uniform]
        candidates = distinct(lambda: random_profile(space, budget, rng), self.initial_candidates, exclude=set())
        fitness = yield from fitness_of(Batch(tuple(candidates), self.initial_tokens, "initial candidates"))
        check_numbers(fitness)
        return self._fittest(candidates, fitness, self.population)

    def _fittest(self, candidates: list[Profile], fitness: list[float], survivors: int) -> list[Profile]:
        return best_first(candidates, fitness, sign=-1.0 if self.maximize else 1.0)[:survivors]

    def _num_generations(self, space: Space, budget: Budget) -> int:
        if self.generations is not None:
            return self.generations
        if budget.metric != "drop":
            raise ValueError("search.generations=null is a number for drops only: set search.generations")
        units = len(space) // len(space.trade_groups)
        dropped = budget.achieved(space, random_profile(space, budget, Random(0))) * units
        return round(dropped * (units - dropped) / 1.5)
