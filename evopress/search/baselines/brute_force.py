"""Evaluates every profile that spends the budget. In small spaces, this shows how close other searches come."""

from collections.abc import Iterator
from itertools import combinations, product
from math import comb, prod
from random import Random

from pydantic import Field

from evopress.runtime.config_class import config_class
from evopress.search.base import Batch, Search, SearchRun, fitness_of
from evopress.search.selection import best_first, check_any_finite
from evopress.search.start_profiles import out_of_reach_message
from evopress.space.budget import Budget, Cap
from evopress.space.units import Profile, Space


@config_class
class BruteForce(Search):
    """Evaluates all drop masks on `tokens`. Raises ValueError if there are more than `max_profiles` of them."""

    tokens: int = Field(gt=0)
    max_profiles: int = Field(default=10_000, gt=0)

    def num_questions(self, space: Space, budget: Budget) -> int:
        return 1

    def run(self, space: Space, budget: Budget, rng: Random) -> SearchRun:
        if not space.is_depth_pruning:
            raise ValueError("search=brute_force searches for drops alone: use it with compress=drop")
        if budget.metric != "drop":
            raise ValueError(
                f"search=brute_force counts dropped units, but budget.metric is {budget.metric}: use a budget such as "
                "budget=drop25"
            )
        caps = budget.caps(space)
        number = prod(comb(len(_droppable(space, cap)), -cap.slack(space, space.uniform(0))) for cap in caps)
        if not number:
            raise ValueError(out_of_reach_message(space, budget))
        if number > self.max_profiles:
            raise ValueError(
                f"there are {number} masks, more than search.max_profiles={self.max_profiles}: raise it, set "
                f"compress.granularity=block, or use another search"
            )
        profiles = list(_masks(space, caps))
        fitness = yield from fitness_of(Batch(tuple(profiles), self.tokens, f"all {number} masks"))
        check_any_finite(fitness)
        return best_first(profiles, fitness)[0]


def _droppable(space: Space, cap: Cap) -> list[int]:
    """The members of `cap` that may be dropped."""
    return [index for index in cap.members if len(space.units[index].levels) > 1]


def _masks(space: Space, caps: tuple[Cap, ...]) -> Iterator[Profile]:
    """All profiles that drop exactly as many units under each cap as it requires."""
    dense = space.uniform(0)
    choices = [combinations(_droppable(space, cap), -cap.slack(space, dense)) for cap in caps]
    for dropped in product(*choices):
        units = {index for group in dropped for index in group}
        yield tuple(int(index in units) for index in range(len(space)))
