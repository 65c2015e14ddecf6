"""Greedy descent: from the least compressed profile, always take the step that costs least fitness per cost saved."""

from math import isfinite, isnan
from random import Random

from pydantic import Field

from evopress.runtime.config_class import config_class
from evopress.search.base import Batch, Search, SearchRun, check_numbers, fitness_of
from evopress.search.baselines.additive import switched
from evopress.search.moves import out_of_reach
from evopress.search.proposals import spent
from evopress.space.budget import Budget
from evopress.space.units import Profile, Space


@config_class
class Greedy(Search):
    """Each step tries every unit one level lower on `tokens`, and lowers the best `per_step` of them.

    Only units under a cap that is still broken are tried. `per_step` above 1 saves evaluations where units are many.
    What the last step saved too much is spent where, by its figures, it hurt most per cost.
    """

    tokens: int = Field(gt=0)
    per_step: int = Field(default=1, gt=0)

    def run(self, space: Space, budget: Budget, rng: Random) -> SearchRun:
        caps = budget.caps(space)
        profile = space.uniform(0)
        step = 0
        harm: dict[int, float] = {}
        while any(cap.slack(space, profile) < 0 for cap in caps):
            step += 1
            broken = [i for cap in caps if cap.slack(space, profile) < 0 for i in cap.members]
            lowerable = [i for i in broken if profile[i] < len(space.units[i].levels) - 1]
            lowerable = [i for i in lowerable if space.cost(_lowered(space, profile, i)) < space.cost(profile)]
            if not lowerable:
                raise ValueError(out_of_reach(space, budget))
            tried = [_lowered(space, profile, i) for i in lowerable]
            fitness = yield from fitness_of(Batch((profile, *tried), self.tokens, f"step {step}"))
            check_numbers(fitness[1:])
            base = fitness[0] if isfinite(fitness[0]) else 0.0
            scores = [
                (found - base) / (space.cost(profile) - space.cost(lowered))
                for found, lowered in zip(fitness[1:], tried, strict=True)
            ]
            harm = dict(zip(lowerable, scores, strict=True))
            order = sorted(range(len(tried)), key=lambda j: (isnan(scores[j]), scores[j]))
            for j in order[: self.per_step]:
                if any(lowerable[j] in cap.members and cap.slack(space, profile) < 0 for cap in caps):
                    profile = _lowered(space, profile, lowerable[j])
        gains = [[-harm.get(i, 0.0) * level.cost for level in unit.levels] for i, unit in enumerate(space.units)]
        return spent(space, caps, profile, gains)


def _lowered(space: Space, profile: Profile, index: int) -> Profile:
    return switched(space, profile, index, profile[index] + 1)
