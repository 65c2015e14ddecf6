"""Search guided by gradients: predicted switch effects propose profiles, and the fitness of the whole model decides.

The paper's Algorithm 1 draws its switches at random. Sums of measured errors mislead when many switches are made at
once. Here a table predicts the effect of every single switch at the current profile, a knapsack solver turns the table
into whole profiles, and the true fitness picks one of them. The next table is made at that profile::

    profile ← the configured start; else the uniform profile that spends the budget, or the lowest one above the budget
    profile ← rounds of a table and a line search along its proposals        (rounds.py)
    profile ← refinements, which measure promising switches one by one       (refinement.py)
    profile ← generations of Algorithm 1, whose mutants a table proposes     (generations.py)

If no uniform profile spends the budget, the rounds start above the budget and lower the cap in equal steps. They do not
start from an evenly spaced mixture within the budget: that model may be so damaged that gradients there say little
about better profiles.

The score of a switch to a costlier level ("up") is first + `up_curvature` · second. In the rounds, the score of a
switch to a cheaper level ("down") is its second-order effect alone: the first-order terms of switches down promise
gains that vanish when many units go down together. The generations move few units at a time. There the first-order
terms of switches down are weighted by `down_slope`.

Refinements and the stages of generations have their own excerpt lengths. Their gains are smaller than the difference
that a longer context makes, so they need longer excerpts than the rounds.

Gradients do not predict drops, because a drop changes the model too much. In a space of drops alone, `Swaps` is used
instead. If a space has both levels and drops, every round also measures the drop of each single sub-block. The knapsack
weighs these effects against those of the table, and each proposal is made twice: with drops that may change, and with
drops that stay. The refinements and generations leave drops as they are.
"""

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Annotated, Literal

from pydantic import Field, model_validator

from evopress.runtime.config_class import config_class
from evopress.search.base import Search, SearchRun
from evopress.search.caps import group_caps
from evopress.search.effects import TableSettings
from evopress.search.generations import Generations
from evopress.search.refinement import Refinement
from evopress.search.rounds import Rounds
from evopress.search.scoring import Scoring
from evopress.search.selection import Stage
from evopress.search.start_profiles import check_profiles, evenly_spaced_profile, lowest_uniform_above, uniform_profile
from evopress.search.swaps import Swaps
from evopress.space.budget import Budget
from evopress.space.units import Profile, Space


@config_class
class Guided(Search):
    """Rounds of a table and a line search, then refinements, then generations whose mutants a table proposes.

    `trade` says which units may trade levels. With `any`, all units may, and only the budget counts. With `groups`,
    only units of the same trade group may, and each group keeps the cost that it has in the evenly spaced profile.

    `start` and `others` are profiles. They need not be within the budget. The search begins at `start`. The `others`
    are lowered to the budget for the last line search of the rounds.

    In a space of drops alone, every round, refinement and generation is a round of swaps. The first of these rounds
    begins at the first of `others` if there is one, else at `start`.
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
    def _check_settings(self) -> "Guided":
        if self.stages[-1].survivors != 1:
            raise ValueError(
                f"the last of search.stages keeps {self.stages[-1].survivors} candidates: set its survivors to 1"
            )
        if self.refinements and not self.refinement:
            raise ValueError("search.refinements needs search.refinement: set its numbers of tokens and its share")
        return self

    def num_questions(self, space: Space, budget: Budget) -> int:
        if space.is_depth_pruning:
            return self._swaps().num_questions(space, budget)
        num_tables = -(-self.generations // self.generations_per_table)
        return (
            (3 if space.children else 2) * self.rounds
            + 3 * self.refinements
            + num_tables
            + self.generations * len(self.stages)
        )

    def warm_started(self, profiles: Sequence[Profile], position: float) -> "Guided":
        """Begin with `profiles` among the `others`, and run only a share of the refinements and generations.

        The share is 25 % + 40 % · `position`, because they gain most where the budget is smallest. At least one is run
        unless their number is set to 0.
        """

        def share(times: int) -> int:
            return max(min(1, times), int(times * (0.25 + 0.4 * position)))

        return replace(
            self,
            others=[*profiles, *self.others],
            refinements=share(self.refinements),
            generations=share(self.generations),
        )

    def run(self, space: Space, budget: Budget, rng: Random) -> SearchRun:
        check_profiles(space, "search.start", [self.start] if self.start else [])
        check_profiles(space, "search.others", self.others)
        if space.is_depth_pruning:
            return (yield from self._swaps().run(space, budget, rng))
        profile = self._start_profile(space, budget)
        evenly_spaced = evenly_spaced_profile(space, budget)
        caps = budget.caps(space) if self.trade == "any" else group_caps(space, evenly_spaced)
        profile, tables = yield from self._rounds().run(space, caps, profile, others=self.others)
        if self.refinement:
            profile = yield from self.refinement.run(space, caps, profile, times=self.refinements, tables=tables)
        return (yield from self._generations().run(space, caps, profile, tables=tables, rng=rng))

    def _start_profile(self, space: Space, budget: Budget) -> Profile:
        """The profile to start from. It may exceed the budget if there are rounds, because these lower it."""
        if self.start:
            if not self.rounds and not budget.holds(space, self.start):
                raise ValueError(
                    "search.start exceeds the budget, and only rounds lower it: set search.rounds to 1 or more"
                )
            return self.start
        uniform = uniform_profile(space, budget)
        return uniform or (lowest_uniform_above if self.rounds else evenly_spaced_profile)(space, budget)

    def _rounds(self) -> Rounds:
        return Rounds(self.rounds, self._table(), Scoring(self.dampings, self.up_curvature), self.line_tokens)

    def _generations(self) -> Generations:
        return Generations(
            num_generations=self.generations,
            generations_per_table=self.generations_per_table,
            offspring=self.offspring,
            free_share=self.free_share,
            noise=self.noise,
            stages=self.stages,
            stage_excerpt=self.stage_excerpt,
            table=self._table(),
            scoring=Scoring(self.dampings, self.up_curvature, self.down_slope),
        )

    def _table(self) -> TableSettings:
        return TableSettings(self.table_tokens, self.draws, self.excerpt)

    def _swaps(self) -> Swaps:
        """The swaps that take the place of this search in a space of drops alone.

        Per token, measuring the effects of about 60 units costs three times as much as a table, and comparing swaps
        costs half as much as a line search of the rounds. So the effects get half the tokens of a table, and the
        comparisons get three times the tokens of a line search.
        """
        return Swaps(
            rounds=self.rounds + self.refinements + self.generations,
            effect_tokens=max(1, self.table_tokens // 2),
            line_tokens=3 * self.line_tokens,
            excerpt=self.excerpt,
            start=next(iter(self.others), self.start),
        )
