"""The result of a search that is stopped before its end."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

from evopress.search.base import Answer, Batch, Question
from evopress.search.selection import best_first
from evopress.space.budget import Budget
from evopress.space.units import Profile, Space


@dataclass(frozen=True)
class BestSoFar:
    """The fittest profile within the budget in the last decisive batch; None before there is one."""

    space: Space
    budget: Budget
    profile: Profile | None = None

    def after(self, question: Question, answer: Answer) -> "BestSoFar":
        """The best profile after another answer."""
        if not isinstance(question, Batch) or not question.decisive:
            return self
        fitness: Sequence[float] = answer  # type: ignore[assignment]
        fit = [
            (profile, value)
            for profile, value in zip(question.profiles, fitness, strict=True)
            if isfinite(value) and self.budget.holds_in_sum(self.space, self.space.normalized(profile))
        ]
        if not fit:
            return self
        best, *_ = best_first([profile for profile, _ in fit], [value for _, value in fit])
        return BestSoFar(self.space, self.budget, best)
