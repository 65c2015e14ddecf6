"""Search for drops by measured swaps: single effects propose swaps, and the fitness of several swaps at once decides.

A drop changes a model too much for gradients to predict its effect, and effects that are measured one by one in the
dense model mislead when many units are dropped. But there are few units, and profiles that differ in one unit share all
blocks before it. So each effect can be measured at the current profile::

    profile ← the dense model without the blocks whose single drops hurt least; with `start`: that profile, fitted to
        the budget
    repeat rounds times:
        effects ← for every unit: the change of the fitness when only this unit is dropped, or restored if it is
            dropped; all on one minibatch, averaged with earlier rounds in which the unit was in the same state
        swaps ← per cap, restore the dropped unit that helps most and drop the kept one that hurts least; then the
            second of each, and so on. Under a budget in bytes, only units of equal size are swapped
        path ← the best swap, the best two, three … made at once; under a budget in bytes also the profile with the
            least sum of effects, which may trade attentions for MLPs
        profile ← the fittest of profile and path, all on one fresh minibatch
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isfinite, isnan, nan
from random import Random
from statistics import fmean

from pydantic import Field

from evopress.runtime.config_class import config_class
from evopress.search.base import Batch, Search, SearchRun, SearchStep, fitness_of
from evopress.search.baselines.scores import Scores
from evopress.search.knapsack import solve_knapsack
from evopress.search.selection import best_first, check_any_finite
from evopress.search.start_profiles import check_profiles
from evopress.space.budget import Budget, Cap
from evopress.space.units import Profile, Space


@config_class
class Swaps(Search):
    """`rounds` rounds. Each one measures single effects, then compares the best swap, the best two, and so on.

    Effects are measured on `effect_tokens`. Up to `max_swaps` swaps at once are compared on `line_tokens`. With
    `excerpt`, only that many tokens of each window are used. Raises ValueError for a space in which layers have levels.
    """

    rounds: int = Field(ge=0)
    effect_tokens: int = Field(gt=0)
    line_tokens: int = Field(gt=0)
    max_swaps: int = Field(default=4, gt=0)
    excerpt: int | None = Field(default=None, gt=0)
    start: Profile | None = None

    def num_questions(self, space: Space, budget: Budget) -> int:
        return 1 + 2 * self.rounds

    def warm_started(self, profiles: Sequence[Profile], position: float) -> "Swaps":
        """Start from the best profile, with a third of the rounds."""
        return replace(self, start=profiles[0], rounds=-(-self.rounds // 3)) if profiles else self

    def run(self, space: Space, budget: Budget, rng: Random) -> SearchRun:
        if not space.is_depth_pruning:
            raise ValueError("search=swaps searches for drops alone: use it with compress=drop")
        check_profiles(space, "search.start", [self.start] if self.start else [])
        caps = budget.caps(space)
        profile = yield from self._start_profile(space, budget, rng)
        effects_by_state: dict[tuple[int, int], list[float]] = {}
        for number in range(1, self.rounds + 1):
            label = f"round {number}/{self.rounds}"
            effects = yield from self._measure_effects(space, profile, label)
            for unit, effect in effects.items():
                effects_by_state.setdefault((unit, profile[unit]), []).append(effect)
            mean_effects = {unit: fmean(effects_by_state[unit, profile[unit]]) for unit in effects}
            path = path_of_swaps(space, caps, profile, effects=mean_effects)[: self.max_swaps]
            trades = trades_of_unequal_units(space, caps, profile, effects=mean_effects)
            candidates = list(dict.fromkeys([profile, *path, *trades]))
            label = f"{label}, swaps at once"
            fitness = yield from fitness_of(Batch(tuple(candidates), self.line_tokens, label, excerpt=self.excerpt))
            check_any_finite(fitness)
            profile = best_first(candidates, fitness)[0]
        return profile

    def _start_profile(self, space: Space, budget: Budget, rng: Random) -> SearchRun:
        if self.start is None:  # whole blocks, because single sub-blocks of a dense model say less about many drops
            scores = Scores(score="kl", tokens=self.effect_tokens, excerpt=self.excerpt)
            return (yield from scores.run(space, budget, rng))
        effects = yield from self._measure_effects(space, self.start, "start")
        return fit_drops_to_caps(space, budget.caps(space), self.start, effects=effects)

    def _measure_effects(self, space: Space, profile: Profile, label: str) -> SearchStep[dict[int, float]]:
        """The change of the fitness when a single unit is dropped or restored, for all units that may be dropped."""
        units = [i for i, unit in enumerate(space.units) if len(unit.levels) > 1]
        changed = (flipped(profile, (i,)) for i in units)
        label = f"{label}, {len(units)} single changes"
        batch = Batch((profile, *changed), self.effect_tokens, label, excerpt=self.excerpt, decisive=False)
        base, *fitness = yield from fitness_of(batch)
        check_any_finite(fitness)
        return {i: value - base for i, value in zip(units, fitness, strict=True)}


def fit_drops_to_caps(space: Space, caps: Sequence[Cap], profile: Profile, *, effects: Mapping[int, float]) -> Profile:
    """Drop the units that hurt least, or restore those that help most, until every cap is met exactly.

    `effects` are the changes of the fitness when a single unit is dropped or restored. Raises ValueError if a cap
    cannot be met.
    """
    for cap in caps:
        must_drop = cap.slack(space, profile) < 0
        changeable = (i for i in cap.members if i in effects and profile[i] == (0 if must_drop else 1))
        for index in sorted(changeable, key=lambda i: (isnan(effects[i]), effects[i], i)):
            changed = flipped(profile, (index,))
            wanted = cap.slack(space, profile) < 0 if must_drop else cap.slack(space, changed) >= 0
            profile = changed if wanted else profile
        if cap.slack(space, profile) < 0:
            raise ValueError("budget.target drops more than compress.keep_* allows: lower it, or keep fewer sub-blocks")
    return profile


def path_of_swaps(
    space: Space, caps: Sequence[Cap], profile: Profile, *, effects: Mapping[int, float]
) -> list[Profile]:
    """The profiles after the best swap, after the best two, and so on. Only units of equal cost are swapped.

    `effects` are as in `fit_drops_to_caps`.
    """
    swaps = []
    for members in _units_of_equal_cost(space, caps):
        order = sorted((i for i in members if isfinite(effects.get(i, nan))), key=lambda i: (effects[i], i))
        kept, dropped = ([i for i in order if profile[i] == state] for state in (0, 1))
        swaps += [(effects[down] + effects[up], (down, up)) for down, up in zip(kept, dropped, strict=False)]
    path = []
    for _, swap in sorted(swaps):
        profile = flipped(profile, swap)
        path.append(profile)
    return path


def trades_of_unequal_units(
    space: Space, caps: Sequence[Cap], profile: Profile, *, effects: Mapping[int, float]
) -> list[Profile]:
    """The profile with the least sum of effects under the caps, if a cap has units of different cost; else none.

    `effects` are as in `fit_drops_to_caps`.
    """
    if len(_units_of_equal_cost(space, caps)) == len(caps):
        return []
    scores = [[0.0] * len(unit.levels) for unit in space.units]
    for index, effect in effects.items():
        scores[index][1 - profile[index]] = effect
    return [solve_knapsack(space, caps, scores)]


def _units_of_equal_cost(space: Space, caps: Sequence[Cap]) -> list[tuple[int, ...]]:
    """The units under each cap, in groups that cost the same to keep."""
    members: dict[tuple[Cap, int], tuple[int, ...]] = {}
    for cap in caps:
        for index in cap.members:
            key = (cap, space.units[index].levels[0].cost)
            members[key] = (*members.get(key, ()), index)
    return list(members.values())


def flipped(profile: Profile, units: Sequence[int]) -> Profile:
    """`profile` with these units dropped if they were kept, and kept if they were dropped."""
    return tuple(1 - level if index in units else level for index, level in enumerate(profile))
