"""Search guided by gradients: second-order tables propose, the fitness of the combined model decides.

Algorithm 1 draws its switches blindly, and sums of measured errors are wrong about many switches at once. Here a table
says what every single switch would do at the current profile, an exact knapsack turns it into whole profiles, from
timid to bold, and the true fitness picks one of them; there the next table is made::

    profile ← the uniform one on the budget or next above it, or a given one
    repeat rounds times, the cap coming down to the budget in equal steps:
        table ← first- and second-order effect of every switch at profile
        path ← for each damping d: the profile of least summed score, with d · second in place of second
        profile ← the fittest of path, profile if it holds the cap, and in the last round what a search for another
            budget found, brought to this one; all on one minibatch
    repeat refinements times:
        measure the most promising switches one by one, and the fittest of what they lead to (see `refinement`)
    repeat generations times:
        every few generations: a table at profile
        offspring ← path, and profiles of least noisy score with a random share of the units free to move
        stages as in Algorithm 1; the parent joins the last

Where no uniform profile meets the budget, the way leads down from one above it: gradients at an evenly spaced mixture
that has broken down say little about a better one.

A switch to a costlier level ("up") is scored first + `up_curvature` · second, one to a cheaper level ("down") in the
rounds by its second-order effect alone: first-order terms of downs promise gains that vanish when many units go down
together. The generations move few units at a time, and there they count, by `down_slope`. What a generation or a
refinement gains is less than what longer contexts change, so they have excerpt lengths of their own.

A drop changes the model too much for what holds near a profile to be of use. Of drops alone, `Swaps` measures instead.
Where levels and drops are in one space, every round also measures what each sub-block does alone; the knapsack weighs
that with the table, and the path goes once with its drops and once without any. The generations leave drops alone.
"""

from collections.abc import Generator, Sequence
from dataclasses import replace
from itertools import product
from random import Random
from typing import Annotated, Literal

from pydantic import Field, model_validator

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
from evopress.search.effects import Effects, averaged, effects_at
from evopress.search.evolution import Stage
from evopress.search.joint import drop_effects, ways, without_drops
from evopress.search.moves import distinct, evenly_spaced_profile, lowest_above, uniform_profile
from evopress.search.proposals import Scores, brought, group_caps, proposed, spent, thawed, towards
from evopress.search.refinement import Refinement, refined
from evopress.search.swaps import Swaps
from evopress.space.budget import Budget, Cap
from evopress.space.units import Profile, Space

Asking = Generator[Question, Answer, Profile]


@config_class
class Guided(Search):
    """Rounds of table and line search, then refinements, then evolution whose mutants the table proposes.

    `trade`: whether units may trade across trade groups (`any`, only the budget counts) or each group keeps the cost it
    has in the evenly spaced profile (`groups`). `start`, a level per unit, need not hold the budget, nor need `others`,
    which are brought to it for the last line search of the rounds: they are refined, and earlier would win against what
    leads further. Of drops, all rounds, refinements and generations are rounds of swaps, from the first of `others` if
    there is one.
    """

    rounds: int = Field(ge=0)
    excerpt: int | None = Field(default=None, gt=0)
    table_tokens: int = Field(gt=0)
    draws: int = Field(default=1, gt=0)
    dampings: list[Annotated[float, Field(gt=0)]] = Field(min_length=1)
    up_curvature: float = Field(default=0.6, ge=0)
    down_slope: float = Field(default=1.0, ge=0, le=1)
    line_tokens: int = Field(gt=0)
    refinements: int = Field(default=0, ge=0)
    refinement: Refinement | None = None
    generations: int = Field(ge=0)
    generations_per_table: int = Field(default=2, gt=0)
    offspring: int = Field(gt=0)
    free_share: float = Field(default=0.1, gt=0, le=1)
    noise: float = Field(default=0.5, ge=0)
    stages: list[Stage] = Field(min_length=1)
    stage_excerpt: int | None = Field(default=None, gt=0)
    trade: Literal["any", "groups"] = "any"
    start: Profile | None = None
    others: list[Profile] = Field(default_factory=list)

    @model_validator(mode="after")
    def _one_survives(self) -> "Guided":
        if self.stages[-1].survivors != 1:
            raise ValueError(f"the last of search.stages keeps {self.stages[-1].survivors} candidates: let it keep 1")
        if self.refinements and not self.refinement:
            raise ValueError("search.refinements needs search.refinement, its tokens and share")
        return self

    def num_questions(self, space: Space, budget: Budget) -> int:
        if space.is_depth_pruning:
            return self._swaps().num_questions(space, budget)
        tables = -(-self.generations // self.generations_per_table)
        return (
            (3 if space.children else 2) * self.rounds
            + 3 * self.refinements
            + tables
            + self.generations * len(self.stages)
        )

    def beside(self, found: Sequence[Profile], place: float) -> "Guided":
        """What follows the rounds gains most where the budget is smallest: from a quarter to two thirds, by `place`."""

        def share(times: int) -> int:
            return max(min(1, times), int(times * (0.25 + 0.4 * place)))

        others, refinements = [*found, *self.others], share(self.refinements)
        return replace(self, others=others, refinements=refinements, generations=share(self.generations))

    def run(self, space: Space, budget: Budget, rng: Random) -> SearchRun:
        check_given(space, "search.start", [self.start] if self.start else [])
        check_given(space, "search.others", self.others)
        if space.is_depth_pruning:
            return (yield from self._swaps().run(space, budget, rng))
        if self.start and not self.rounds and not budget.holds(space, self.start):
            raise ValueError("search.start is beyond the budget, and only rounds lower it: set search.rounds=1 or more")
        uniform = evenly_spaced_profile(space, budget)
        caps = budget.caps(space) if self.trade == "any" else group_caps(space, uniform)
        profile = self.start or self._first(space, budget)
        tables: list[Effects] = []
        for number in range(1, self.rounds + 1):
            tables.append((yield from self._effects(space, profile)))
            if space.children:
                rows = yield from drop_effects(space, profile, max(1, self.table_tokens // 2), self.excerpt)
                tables[-1] = replace(tables[-1], second=[rows.get(i, row) for i, row in enumerate(tables[-1].second)])
            others = self.others if number == self.rounds else []
            label = f"round {number}/{self.rounds}, line search"
            aim = towards(space, caps, profile, self.rounds + 1 - number)
            profile = yield from self._line_search(space, aim, tables, others, label)
        if self.refinement:
            profile = yield from refined(space, caps, profile, self.refinement, self.refinements, tables)
        for number in range(1, self.generations + 1):
            if (number - 1) % self.generations_per_table == 0:
                tables.append((yield from self._effects(space, profile)))
            label = f"generation {number}/{self.generations}"
            profile = yield from self._generation(space, caps, profile, tables, rng, label)
        return profile

    def _first(self, space: Space, budget: Budget) -> Profile:
        """Above the budget if rounds can bring it down."""
        uniform = uniform_profile(space, budget)
        return uniform or (lowest_above if self.rounds else evenly_spaced_profile)(space, budget)

    def _swaps(self) -> Swaps:
        """Per token, the effects of some 60 units cost three times as much as a table, and a comparison half."""
        return Swaps(
            rounds=self.rounds + self.refinements + self.generations,
            effect_tokens=max(1, self.table_tokens // 2),
            line_tokens=3 * self.line_tokens,
            excerpt=self.excerpt,
            start=next(iter(self.others), self.start),
        )

    def _effects(self, space: Space, profile: Profile) -> Generator[Question, Answer, Effects]:
        return (yield from effects_at(space, profile, self.table_tokens, self.draws, self.excerpt))

    def _path(
        self, space: Space, caps: tuple[Cap, ...], tables: list[Effects], down_slope: float = 0.0
    ) -> list[Profile]:
        """The way that the last table points out from its profile, from bold to timid."""
        profile, found = tables[-1].profile, []
        for damping, way in product(self.dampings, ways(space, caps, profile)):
            scores = self._scores(space, tables, damping, down_slope)
            found.append(spent(space, way, proposed(space, way, profile, scores), scores))
        return [other for other in dict.fromkeys(found) if other != profile]

    def _line_search(
        self, space: Space, caps: tuple[Cap, ...], tables: list[Effects], others: Sequence[Profile], label: str
    ) -> Asking:
        """The fittest of the last table's own profile, the way it points out, and `others` brought to the budget."""
        profile = tables[-1].profile
        holds = all(cap.slack(space, profile) >= 0 for cap in caps)
        scores = self._scores(space, tables, damping=1.0)
        near = [brought(space, caps, other, scores) for other in others]
        fitting = [other for other in near if all(cap.slack(space, other) >= 0 for cap in caps)]
        stay = [profile] if holds else []
        candidates = list(dict.fromkeys([*stay, *self._path(space, caps, tables), *fitting]))
        fitness = yield from fitness_of(Batch(tuple(candidates), self.line_tokens, label, excerpt=self.excerpt))
        check_numbers(fitness)
        return best_first(candidates, fitness)[0]

    def _generation(
        self, space: Space, caps: tuple[Cap, ...], parent: Profile, tables: list[Effects], rng: Random, label: str
    ) -> Asking:
        """Algorithm 1's selection; the last table proposes the mutants, and a fresh one its way as well."""

        caps = without_drops(space, caps, parent)

        def mutant() -> Profile:
            scores = self._scores(space, tables, rng.choice(self.dampings), self.down_slope)
            noisy = [[rng.lognormvariate(0.0, self.noise) * score for score in unit] for unit in scores]
            share = self.free_share * rng.random()
            return spent(space, caps, proposed(space, thawed(space, caps, parent, share, rng), parent, noisy), noisy)

        path = self._path(space, caps, tables, self.down_slope) if tables[-1].profile == parent else []
        candidates = [*path, *distinct(mutant, self.offspring - len(path), exclude={parent, *path})]
        if not candidates:
            return parent  # the budget leaves no other profile
        for number, stage in enumerate(self.stages, start=1):
            if number == len(self.stages):
                candidates = [parent, *candidates]
            stage_label = f"{label}, stage {number}/{len(self.stages)}"
            batch = Batch(tuple(candidates), stage.tokens, stage_label, excerpt=self.stage_excerpt)
            fitness = yield from fitness_of(batch)
            candidates = best_first(candidates, fitness)[: stage.survivors]
        check_numbers(fitness)
        return candidates[0]

    def _scores(self, space: Space, tables: list[Effects], damping: float, down_slope: float = 0.0) -> Scores:
        """What the last table says of every level, with the curvature of all tables."""
        profile, first = tables[-1].profile, tables[-1].first
        second = averaged(space, tables).second

        def score(unit: int, level: int) -> float:
            levels = space.units[unit].levels
            curvature = second[unit][level] * (damping if second[unit][level] > 0 else 1)  # a restored part's is a gain
            is_up = levels[level].cost > levels[profile[unit]].cost
            slope, bend = (1.0, self.up_curvature) if is_up else (down_slope, 1.0)
            return bend * curvature + (slope * first[unit][level] if slope else 0.0)

        return [[score(unit, level) for level in range(len(space.units[unit].levels))] for unit in range(len(space))]
