"""First phase of the guided search: rounds of a table and a line search along its proposals.

::

    repeat rounds times, with the caps tightened in equal steps down to the budget:
        table ← first- and second-order effects of all switches from profile
        path ← for each damping: the profile of least summed score
        profile ← the fittest of path; of profile itself, if it is within the caps; and of `others`, in the last round
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from evopress.search.base import Batch, SearchStep, fitness_of
from evopress.search.caps import Caps, tightened_caps
from evopress.search.drops import measure_drop_effects
from evopress.search.effects import Effects, TableSettings, predict_effects, with_mean_curvature
from evopress.search.proposals import fit_to_caps, path_from_table
from evopress.search.scoring import Scoring, level_scores
from evopress.search.selection import best_first, check_any_finite
from evopress.space.units import Profile, Space


@dataclass(frozen=True)
class Rounds:
    """`num_rounds` rounds, whose candidates are compared on `line_tokens`."""

    num_rounds: int
    table: TableSettings
    scoring: Scoring
    line_tokens: int

    def run(
        self, space: Space, caps: Caps, profile: Profile, *, others: Sequence[Profile]
    ) -> SearchStep[tuple[Profile, list[Effects]]]:
        """Returns the best profile that the rounds reach from `profile`, and all their tables.

        `profile` may exceed the caps. The `others` are lowered to the caps and join the last line search. If they
        joined earlier, they would win, because they are already refined, and the rounds would make no progress.
        """
        tables: list[Effects] = []
        for number in range(1, self.num_rounds + 1):
            tables.append((yield from self._effects(space, profile)))
            steps_left = self.num_rounds + 1 - number
            candidates = self._candidates(
                space,
                tightened_caps(space, caps, profile, num_steps=steps_left),
                tables,
                others=others if steps_left == 1 else [],
            )
            label = f"round {number}/{self.num_rounds}, line search"
            batch = Batch(tuple(candidates), self.line_tokens, label, excerpt=self.table.excerpt)
            fitness = yield from fitness_of(batch)
            check_any_finite(fitness)
            profile = best_first(candidates, fitness)[0]
        return profile, tables

    def _effects(self, space: Space, profile: Profile) -> SearchStep[Effects]:
        """The predicted effects. If drops are possible, their effects are measured instead, on half the tokens."""
        effects = yield from predict_effects(space, profile, self.table)
        if not space.children:
            return effects
        num_tokens = max(1, self.table.num_tokens // 2)
        measured = yield from measure_drop_effects(space, profile, num_tokens, excerpt=self.table.excerpt)
        return replace(effects, second=[measured.get(i, row) for i, row in enumerate(effects.second)])

    def _candidates(
        self, space: Space, caps: Caps, tables: Sequence[Effects], *, others: Sequence[Profile]
    ) -> list[Profile]:
        """Profile and path of the last table, and `others` lowered to the caps; only profiles within the caps."""
        profile = tables[-1].profile
        scores = level_scores(space, with_mean_curvature(space, tables), self.scoring, damping=1.0)
        lowered = [fit_to_caps(space, caps, other, scores=scores) for other in others]

        def holds(candidate: Profile) -> bool:
            return all(cap.slack(space, candidate) >= 0 for cap in caps)

        path = path_from_table(space, caps, tables, scoring=self.scoring)
        return list(dict.fromkeys([*filter(holds, [profile]), *path, *filter(holds, lowered)]))
