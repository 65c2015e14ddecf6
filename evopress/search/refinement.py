"""Second phase of the guided search: the most promising switches are measured one by one.

Close to the best profile, a single switch changes the KL by one percent or less. There a table can find the switches
that are worth measuring, but it is too inaccurate to choose among them. Measuring all switches would cost more than all
the rounds did. So there are many small refinements that measure a few switches each. All measurements of a switch count
as long as its unit keeps its level::

    repeat:
        table ← first- and second-order effects of all switches from profile, averaged with earlier tables
        estimates ← for every switch one level up or down: its measurements combined with the table
        promising ← a share of the switches up, and of those down: those with the best estimated effect per cost
        measured ← the fitness after each of them alone, minus that of profile, all on one minibatch
        path ← for each caution c: the profile made of measured switches with the least sum of (estimate + c · noise)
        profile ← the fittest of path and profile, on another minibatch
"""

from collections.abc import Sequence
from math import inf

from pydantic import Field

from evopress.runtime.config_class import config_class
from evopress.search.base import Batch, SearchRun, SearchStep, fitness_of
from evopress.search.caps import Caps, caps_on_levels
from evopress.search.effects import Effects, TableSettings, mean_effects, predict_effects
from evopress.search.estimates import Estimates, Measurement, estimate_changes, promising_switches
from evopress.search.knapsack import LevelScores
from evopress.search.proposals import best_by_scores, spend_slack
from evopress.search.selection import best_first, check_any_finite
from evopress.search.switches import Switch, switched
from evopress.space.units import Profile, Space

CAUTIONS = (0.25, 0.5, 1.0, 2.0)
"""Multiples of the noise of a single estimate: margins by which every switch has to improve the fitness."""


@config_class
class Refinement:
    """Settings of a refinement: the numbers of tokens for its table, for each measured switch and for its line search.

    `share` is the share of the switches that are measured.
    """

    table_tokens: int = Field(gt=0)
    share: float = Field(gt=0, le=1)
    tokens: int = Field(gt=0)
    line_tokens: int = Field(gt=0)
    excerpt: int | None = Field(default=None, gt=0)

    def run(
        self, space: Space, caps: Caps, profile: Profile, *, times: int, tables: Sequence[Effects] = ()
    ) -> SearchRun:
        """Returns `profile`, which must be within the caps, or a better one after `times` refinements.

        Drops stay as they are. `tables` are the tables of the rounds.
        """
        caps = caps_on_levels(space, caps, profile)
        table = TableSettings(self.table_tokens, draws=1, excerpt=self.excerpt)
        tables, measurements = list(tables), list[Measurement]()
        for number in range(1, times + 1):
            label = f"refinement {number}/{times}"
            tables.append((yield from predict_effects(space, profile, table)))
            effects = mean_effects(space, tables)
            estimates = estimate_changes(space, caps, effects, measurements=measurements)
            switches = promising_switches(space, caps, estimates, share=self.share)
            if not switches:
                break
            measurements.append((yield from self._measure(space, profile, switches, label=label)))
            estimates = estimate_changes(space, caps, effects, measurements=measurements)
            profile = yield from self._line_search(profile, _path(space, caps, effects, estimates), label)
        return profile

    def _measure(
        self, space: Space, profile: Profile, switches: Sequence[Switch], *, label: str
    ) -> SearchStep[Measurement]:
        singles = [switched(space, profile, *switch) for switch in switches]
        label = f"{label}, {len(singles)} switches"
        batch = Batch((profile, *singles), self.tokens, label, excerpt=self.excerpt, decisive=False)
        base, *fitness = yield from fitness_of(batch)
        check_any_finite([base])
        return Measurement(profile, {switch: value - base for switch, value in zip(switches, fitness, strict=True)})

    def _line_search(self, profile: Profile, path: Sequence[Profile], label: str) -> SearchRun:
        candidates = list(dict.fromkeys([profile, *path]))
        label = f"{label}, line search"
        fitness = yield from fitness_of(Batch(tuple(candidates), self.line_tokens, label, excerpt=self.excerpt))
        check_any_finite(fitness)
        return best_first(candidates, fitness)[0]


def _path(space: Space, caps: Caps, effects: Effects, estimates: Estimates) -> list[Profile]:
    """Profiles made of measured switches, from bold to cautious. Their slack is spent by the scores of the table."""
    table = [
        [sum(both) for both in zip(*unit, strict=True)] for unit in zip(effects.first, effects.second, strict=True)
    ]
    path = []
    for caution in CAUTIONS:
        scores: LevelScores = [[inf] * len(unit.levels) for unit in space.units]
        for unit, level in enumerate(effects.profile):
            scores[unit][level] = 0.0
        for unit, level in estimates.measured:
            scores[unit][level] = estimates.changes[unit, level] + caution * estimates.noise
        best = best_by_scores(space, caps, effects.profile, scores=scores)
        path.append(spend_slack(space, caps, best, scores=table))
    return path
