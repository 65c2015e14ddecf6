"""Greedy descent: from the least compressed profile, always take the step that hurts fitness least per cost saved."""

from math import isfinite, isnan
from random import Random

from pydantic import Field

from evopress.runtime.config_class import config_class
from evopress.search.base import Batch, Search, SearchRun, fitness_of
from evopress.search.proposals import spend_slack
from evopress.search.selection import check_any_finite
from evopress.search.start_profiles import out_of_reach_message
from evopress.search.switches import switched
from evopress.space.budget import Budget
from evopress.space.units import Profile, Space


@config_class
class Greedy(Search):
    """Each step tries every unit one level lower on `tokens`, and lowers the best `per_step` of them.

    Only units under a cap that is still exceeded are tried. With many units, `per_step` above 1 saves evaluations. If
    the last step saves more than needed, the slack is spent on the units that hurt most per cost in that step.
    """

    tokens: int = Field(gt=0)
    per_step: int = Field(default=1, gt=0)

    def run(self, space: Space, budget: Budget, rng: Random) -> SearchRun:
        caps = budget.caps(space)
        profile = space.uniform(0)
        step = 0
        loss_per_cost: dict[int, float] = {}
        while exceeded := [cap for cap in caps if cap.slack(space, profile) < 0]:
            step += 1
            members = [i for cap in exceeded for i in cap.members]
            lowerable = [i for i in members if _saves_by_lowering(space, profile, i)]
            if not lowerable:
                raise ValueError(out_of_reach_message(space, budget))
            lowered = [_lowered(space, profile, i) for i in lowerable]
            fitness = yield from fitness_of(Batch((profile, *lowered), self.tokens, f"step {step}", decisive=False))
            check_any_finite(fitness[1:])
            base = fitness[0] if isfinite(fitness[0]) else 0.0
            loss_per_cost = {
                unit: (value - base) / (space.cost(profile) - space.cost(other))
                for unit, value, other in zip(lowerable, fitness[1:], lowered, strict=True)
            }
            best = sorted(lowerable, key=lambda i: (isnan(loss_per_cost[i]), loss_per_cost[i]))
            for unit in best[: self.per_step]:
                if any(unit in cap.members and cap.slack(space, profile) < 0 for cap in caps):
                    profile = _lowered(space, profile, unit)
        scores = [[-loss_per_cost.get(i, 0.0) * level.cost for level in u.levels] for i, u in enumerate(space.units)]
        return spend_slack(space, caps, profile, scores=scores)


def _lowered(space: Space, profile: Profile, index: int) -> Profile:
    return switched(space, profile, index, profile[index] + 1)


def _saves_by_lowering(space: Space, profile: Profile, index: int) -> bool:
    """Whether the unit can go one level down, and costs less there."""
    if profile[index] >= len(space.units[index].levels) - 1:
        return False
    return space.cost(_lowered(space, profile, index)) < space.cost(profile)
