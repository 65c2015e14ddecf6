"""The contract of a search: a generator that asks questions and is sent the answers."""

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal, TypeVar, cast

from evopress.space.budget import Budget
from evopress.space.units import Profile, Space

Fitness = Literal["kl", "perplexity", "topk_kl"]
"""How profiles are compared: by a divergence from the dense model, or by perplexity."""


@dataclass(frozen=True)
class Batch:
    """Asks for the fitness of `profiles`. The answer is one float per profile, and lower is better.

    All profiles are compared on the same `num_tokens` fresh search tokens. `label` tells people how far the search is
    ("generation 3/50, stage 1/2"). `fitness` overrides the fitness of the run, for methods that prescribe one. With
    `excerpt`, only that many tokens of each window are used, so the same number of tokens covers more windows.

    If a search is stopped early, its result is the fittest profile within the budget of its last `decisive` batch. A
    batch is decisive if it compares the best profile so far with profiles that may take its place.
    """

    profiles: tuple[Profile, ...]
    num_tokens: int
    label: str = ""
    fitness: Fitness | None = None
    excerpt: int | None = None
    decisive: bool = True


TableKind = Literal["layer_error", "outliers", "cosine", "relative_change", "switch_effects"]

Rows = list[list[float]]


@dataclass(frozen=True)
class Table:
    """Asks for measurements other than fitness: of the dense model, of the levels, or of switches from `profile`.

    - `layer_error`: [unit][level], the share of a layer's output energy that the level loses; summed over tied layers.
    - `outliers`: [block][i], the share of the scores |w|·‖x‖ in the block that exceed `arguments[i]` times their mean.
    - `cosine`: [unit][i], the cosine similarity of the residual stream before the unit and after `arguments[i]` units,
      counting this one; 0 if fewer units remain.
    - `relative_change`: [unit][i], ‖after − before‖ / ‖after‖ of the same two streams; infinite if fewer units remain.
    - `switch_effects`: [switch][2], with one row for each level of each unit in turn: the first- and second-order
      change of the KL if only this unit moved from its level in `profile` to that level. 0 for drops and for units
      inside a dropped one. `arguments[0]` is the number of random draws.

    `excerpt` means the same as in `Batch`.
    """

    kind: TableKind
    num_tokens: int
    arguments: tuple[float, ...] = ()
    profile: Profile | None = None
    excerpt: int | None = None


T = TypeVar("T")

Question = Batch | Table
Answer = list[float] | Rows
SearchStep = Generator[Question, Answer, T]
"""A part of a search: it yields questions, is sent the answers, and returns a T."""
SearchRun = SearchStep[Profile]


def fitness_of(batch: Batch) -> SearchStep[list[float]]:
    """Ask for fitness: `fitness = yield from fitness_of(Batch(…))`."""
    answer = yield batch
    return cast(list[float], answer)


def rows_of(table: Table) -> SearchStep[Rows]:
    """Ask for a table: `rows = yield from rows_of(Table(…))`."""
    answer = yield table
    return cast(Rows, answer)


class Search(ABC):
    """Picks one level per unit within a budget. A search never sees the model or a tensor.

    A subclass is a frozen, keyword-only pydantic dataclass. All randomness comes from `rng`, so the same seed and the
    same answers give the same profile. A killed search is resumed by replaying its answers.

    This example returns the better of two profiles::

        def run(self, space, budget, rng):
            profiles = (space.uniform(0), space.uniform(1))
            fitness = yield from fitness_of(Batch(profiles, num_tokens=4096))
            return profiles[fitness.index(min(fitness))]
    """

    @abstractmethod
    def run(self, space: Space, budget: Budget, rng: Random) -> SearchRun:
        """A generator that yields questions, is sent the answers, and returns the profile it chose."""

    def num_questions(self, space: Space, budget: Budget) -> int | None:
        """The number of questions that `run` will ask, for the progress display; None if unknown."""
        return None

    def warm_started(self, profiles: Sequence[Profile], position: float) -> "Search":
        """The search to run for one of several budgets, given the results for the next larger budget.

        `profiles` starts with the best profile for the larger budget, followed by profiles that came close. They may
        exceed this budget. For the largest budget, `profiles` is empty. `position` is in (0, 1], and 1 for the smallest
        budget. The default ignores both.
        """
        return self
