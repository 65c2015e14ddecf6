"""Last phase of the guided search: the paper's Algorithm 1 with mutants that a table proposes.

::

    repeat generations times:
        every few generations: table ← effects of all switches from profile
        offspring ← the table's path, if the table was made at this profile; then mutants, each of which has the least
            sum of noisy scores while only a random share of the units may move
        profile ← the survivor of the stages; profile itself joins in the last stage
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from evopress.search.base import SearchRun
from evopress.search.caps import Caps, caps_on_levels, caps_on_random_units
from evopress.search.effects import Effects, TableSettings, predict_effects, with_mean_curvature
from evopress.search.mutation import distinct_profiles
from evopress.search.proposals import best_by_scores, path_from_table, spend_slack
from evopress.search.scoring import Scoring, level_scores
from evopress.search.selection import Stage, select_survivors
from evopress.space.units import Profile, Space


@dataclass(frozen=True)
class Generations:
    """`num_generations` generations, with a new table every `generations_per_table` generations.

    In a mutant, each unit may move with a probability of at most `free_share`. The scores of a mutant are multiplied by
    log-normal factors; `noise` is the standard deviation of their logarithms.
    """

    num_generations: int
    generations_per_table: int
    offspring: int
    free_share: float
    noise: float
    stages: Sequence[Stage]
    stage_excerpt: int | None
    table: TableSettings
    scoring: Scoring

    def run(self, space: Space, caps: Caps, profile: Profile, *, tables: Sequence[Effects], rng: Random) -> SearchRun:
        """Returns `profile`, which must be within the caps, or a better one. Drops stay as they are.

        `tables` are the tables of the rounds.
        """
        tables = list(tables)
        for number in range(1, self.num_generations + 1):
            if (number - 1) % self.generations_per_table == 0:
                tables.append((yield from predict_effects(space, profile, self.table)))
            offspring = self._offspring(space, caps, profile, tables=tables, rng=rng)
            if not offspring:
                continue  # no other profile is within the budget
            label = f"generation {number}/{self.num_generations}"
            (profile,) = yield from select_survivors(
                [profile], offspring, stages=self.stages, label=label, excerpt=self.stage_excerpt
            )
        return profile

    def _offspring(
        self, space: Space, caps: Caps, parent: Profile, *, tables: Sequence[Effects], rng: Random
    ) -> list[Profile]:
        caps, effects = caps_on_levels(space, caps, parent), with_mean_curvature(space, tables)
        scores_of = {
            damping: level_scores(space, effects, self.scoring, damping=damping) for damping in self.scoring.dampings
        }

        def mutant() -> Profile:
            scores = scores_of[rng.choice(self.scoring.dampings)]
            noisy = [[rng.lognormvariate(0.0, self.noise) * score for score in unit] for unit in scores]
            share = self.free_share * rng.random()
            free = caps_on_random_units(space, caps, parent, share=share, rng=rng)
            return spend_slack(space, caps, best_by_scores(space, free, parent, scores=noisy), scores=noisy)

        path = path_from_table(space, caps, tables, scoring=self.scoring) if tables[-1].profile == parent else []
        return [*path, *distinct_profiles(mutant, self.offspring - len(path), exclude={parent, *path})]
