"""The contract of a search: a generator that asks questions and is sent their answers."""

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from math import isfinite, isnan
from random import Random
from typing import Literal, cast

from evopress.space.budget import Budget
from evopress.space.units import Profile, Space

Fitness = Literal["kl", "perplexity", "topk_kl"]
"""What profiles are compared by: a divergence from the dense model, or perplexity."""


@dataclass(frozen=True)
class Batch:
    """Asks for the fitness of `profiles`, lower is better, all on the same `num_tokens` fresh search tokens.

    `label` says where the search stands ("generation 3/50, stage 1/2"). `fitness` overrides the run's own for methods
    that are defined by another. With `excerpt`, so many tokens of a window stand for it: more texts for the same cost.
    The answer is one float per profile.
    """

    profiles: tuple[Profile, ...]
    num_tokens: int
    label: str = ""
    fitness: Fitness | None = None
    excerpt: int | None = None


TableKind = Literal["layer_error", "outliers", "cosine", "relative_change", "switch_effects"]


@dataclass(frozen=True)
class Table:
    """Asks for measurements other than the fitness of profiles: of the dense model, of the levels, or around `profile`.

    - `layer_error`: [unit][level], the share of a layer's output energy that the level loses; summed over tied layers.
    - `outliers`: [block][i], the share of |w|·‖x‖ in the block above `arguments[i]` times their mean.
    - `cosine`: [unit][i], the similarity of the residual stream before the unit and after `arguments[i]` units, itself
      included; 0 where there are not so many.
    - `relative_change`: [unit][i], ‖after − before‖ / ‖after‖ of the same two; infinite where there are not so many.
    - `switch_effects`: [switch][2], a row for each level of each unit in turn: how the KL would change to first and to
      second order if the unit alone left `profile` for that level; 0 for drops, and inside what is dropped.
      `arguments[0]` is the number of draws.

    `excerpt` is that of `Batch`.
    """

    kind: TableKind
    num_tokens: int
    arguments: tuple[float, ...] = ()
    profile: Profile | None = None
    excerpt: int | None = None


Question = Batch | Table
Answer = list[float] | list[list[float]]
SearchRun = Generator[Question, Answer, Profile]


def fitness_of(batch: Batch) -> Generator[Question, Answer, list[float]]:
    """`fitness = yield from fitness_of(Batch(…))` asks for fitness."""
    answer = yield batch
    return cast(list[float], answer)


def best_first(profiles: Sequence[Profile], fitness: Sequence[float], sign: float = 1.0) -> list[Profile]:
    """In order of `sign` · fitness; of equals the earlier first, and NaN last."""
    order = sorted(range(len(profiles)), key=lambda i: (isnan(fitness[i]), sign * fitness[i]))
    return [profiles[i] for i in order]


def check_numbers(fitness: Sequence[float]) -> None:
    """Raises ValueError when no fitness is finite, so that there is nothing to choose by."""
    if not any(map(isfinite, fitness)):
        raise ValueError(
            f"the fitness of all {len(fitness)} candidates is NaN or infinite, so none can be chosen: set "
            f"model.dtype=float32, or leave the most compressed levels out of the compressor's settings"
        )


def check_given(space: Space, key: str, profiles: Iterable[Profile]) -> None:
    """Raises ValueError, naming the key, for a profile from the settings that is of another space."""
    for profile in profiles:
        try:
            space.check(profile)
        except ValueError as error:
            raise ValueError(f"{key} is not of this model and database: {error}") from error


def rows_of(table: Table) -> Generator[Question, Answer, list[list[float]]]:
    """`rows = yield from rows_of(Table(…))` asks for a table."""
    answer = yield table
    return cast(list[list[float]], answer)


class Search(ABC):
    """Picks one level per unit within a budget. Pure Python: it sees no model and no tensor.

    A subclass is a frozen, keyword-only pydantic dataclass. Everything random comes from `rng`, so the same seed and
    the same answers give the same profile; a killed search is resumed by replaying its answers.

    A worked example, best of two::

        def run(self, space, budget, rng):
            profiles = (space.uniform(0), space.uniform(1))
            fitness = yield from fitness_of(Batch(profiles, num_tokens=4096))
            return profiles[fitness.index(min(fitness))]
    """

    @abstractmethod
    def run(self, space: Space, budget: Budget, rng: Random) -> SearchRun:
        """A generator that yields questions, is sent their answers, and returns the profile it chose."""

    def num_questions(self, space: Space, budget: Budget) -> int | None:
        """How many questions `run` will ask, for the progress display; None when not known."""
        return None

    def beside(self, found: Sequence[Profile], place: float) -> "Search":
        """The search to run for one of many budgets; itself if it has no use for what was `found` for a neighbour.

        That is the best profile, then what came close to it there; none of them need hold the budget here. For the
        first of the budgets it is empty. `place`, above 0, is 1 for the smallest budget.
        """
        return self
