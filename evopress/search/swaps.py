"""Measured swaps, for drops: what every unit would do alone proposes, the fitness of several swaps at once decides.

A drop changes a model too much for gradients to foretell, and scores of single drops are wrong about many at once. But
units are few, and profiles that differ in one unit share all blocks before it, so each can be measured where it counts,
at the profile the search stands at::

    profile ← the blocks whose single drops hurt least, or from where a search for another budget ended, those units
    repeat rounds times:
        effects ← change of fitness when one unit alone changes sides, for every unit, all on one minibatch; then the
            mean with those of earlier rounds in which the unit was on the same side
        swaps ← per cap, the dropped unit that helps most back for the kept one that hurts least, and so on down
        path ← the best swap, the best two, three … made at once
        profile ← the fittest of profile and path, all on one fresh minibatch
"""

from collections.abc import Generator, Sequence
from dataclasses import replace
from math import isfinite, isnan, nan
from random import Random
from statistics import fmean

from pydantic import Field

from evopress.runtime.config_class import config_class
from evopress.search.base import (
    Answer,
    Batch,
    Question,
    Search,
    SearchRun,
    best_first,
    check_given,
    check_numbers,
    fitness_of,
)
from evopress.search.baselines.scores import Scores
from evopress.space.budget import Budget, Cap
from evopress.space.units import Profile, Space


@config_class
class Swaps(Search):
    """`rounds` of single effects on `effect_tokens` and a comparison of up to `max_swaps` at once on `line_tokens`.

    With `excerpt`, so many tokens of a text stand for a whole window.
    Raises ValueError for a space that is not one of drops.
    """

    rounds: int = Field(ge=0)
    effect_tokens: int = Field(gt=0)
    line_tokens: int = Field(gt=0)
    max_swaps: int = Field(default=4, gt=0)
    excerpt: int | None = Field(default=None, gt=0)
    start: Profile | None = None

    def num_questions(self, space: Space, budget: Budget) -> int:
        return 1 + 2 * self.rounds

    def run(self, space: Space, budget: Budget, rng: Random) -> SearchRun:
        if not space.is_depth_pruning:
            raise ValueError("search=swaps measures what can be dropped: use it with compress=drop")
        check_given(space, "search.start", [self.start] if self.start else [])
        caps = budget.caps(space)
        if self.start is None:  # what single sub-blocks do to a dense model says less of many than what blocks do
            scores = Scores(score="kl", tokens=self.effect_tokens, excerpt=self.excerpt)
            profile = yield from scores.run(space, budget, rng)
        else:
            effects = yield from self._effects(space, self.start, "start")
            profile = cheapest(space, caps, self.start, effects)
        seen: dict[tuple[int, int], list[float]] = {}
        for number in range(1, self.rounds + 1):
            label = f"round {number}/{self.rounds}"
            effects = yield from self._effects(space, profile, label)
            for index, effect in effects.items():
                seen.setdefault((index, profile[index]), []).append(effect)
            averaged = {index: fmean(seen[index, profile[index]]) for index in effects}
            candidates = [profile, *path(caps, profile, averaged)[: self.max_swaps]]
            fitness = yield from fitness_of(self._line(candidates, label))
            check_numbers(fitness)
            profile = best_first(candidates, fitness)[0]
        return profile

    def _line(self, candidates: list[Profile], label: str) -> Batch:
        return Batch(tuple(candidates), self.line_tokens, f"{label}, swaps at once", excerpt=self.excerpt)

    def beside(self, found: Sequence[Profile], place: float) -> "Swaps":
        return replace(self, start=found[0], rounds=-(-self.rounds // 3)) if found else self

    def _effects(self, space: Space, profile: Profile, label: str) -> Generator[Question, Answer, dict[int, float]]:
        """Change of fitness when one unit alone changes sides, of those that can."""
        units = [i for i, unit in enumerate(space.units) if len(unit.levels) > 1]
        changed = tuple(flipped(profile, (i,)) for i in units)
        batch = Batch(
            (profile, *changed), self.effect_tokens, f"{label}, {len(units)} single changes", excerpt=self.excerpt
        )
        base, *fitness = yield from fitness_of(batch)
        check_numbers(fitness)
        return {i: found - base for i, found in zip(units, fitness, strict=True)}


def cheapest(space: Space, caps: Sequence[Cap], profile: Profile, effects: dict[int, float]) -> Profile:
    """`profile` with what hurts least dropped, or what helps most kept again, until every cap is met and spent."""
    for cap in caps:
        drops = cap.slack(space, profile) < 0
        movable = (i for i in cap.members if i in effects and profile[i] == (0 if drops else 1))
        for index in sorted(movable, key=lambda i: (isnan(effects[i]), effects[i], i)):
            changed = flipped(profile, (index,))
            wanted = cap.slack(space, profile) < 0 if drops else cap.slack(space, changed) >= 0
            profile = changed if wanted else profile
        if cap.slack(space, profile) < 0:
            raise ValueError("budget.target drops more than may be dropped: lower it, or keep fewer by compress.keep_*")
    return profile


def path(caps: Sequence[Cap], profile: Profile, effects: dict[int, float]) -> list[Profile]:
    """The best swap made, the best two, and so on. `effects`: change of fitness when the unit alone changes sides."""
    swaps = []
    for cap in caps:
        order = sorted((i for i in cap.members if isfinite(effects.get(i, nan))), key=lambda i: (effects[i], i))
        kept, dropped = ([i for i in order if profile[i] == side] for side in (0, 1))
        swaps += [(effects[down] + effects[up], (down, up)) for down, up in zip(kept, dropped, strict=False)]
    found = []
    for _, swap in sorted(swaps):
        profile = flipped(profile, swap)
        found.append(profile)
    return found


def flipped(profile: Profile, indices: Sequence[int]) -> Profile:
    """`profile` with the kept of these units dropped and the dropped ones kept."""
    return tuple(1 - level if index in indices else level for index, level in enumerate(profile))
