"""Refinement: where a table no longer tells which switches pay, the most promising ones are measured one by one.

Close to the best profile what a single switch gains is a hundredth of the KL and less. There a table finds the switches
worth a look, but is too rough to choose among them; measuring all of them would cost more than all rounds before::

    table ← first- and second-order effect of every switch at profile
    promising ← the `share` of best predicted effect per cost, of switches one level up and of those one level down
    measured ← the fitness of each alone, less that of profile, all on one minibatch
    fitted ← least squares of measured on first and second, for ups and downs apart
    scores ← the mean of measured and fitted: what is measured has its noise, and picks of the best follow it
    path ← for each caution c: the profile of least summed score, with c · noise added to every switch
    profile ← the fittest of path and profile on another minibatch
"""

from collections.abc import Generator
from dataclasses import dataclass
from math import ceil, inf, isfinite, isnan
from statistics import fmean, median

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as checked_dataclass

from evopress.budget import Cap
from evopress.profile import Profile, Space
from evopress.search.additive import switched
from evopress.search.base import Answer, Batch, Question, best_first, check_numbers, fitness_of
from evopress.search.effects import Effects, averaged, effects_at
from evopress.search.joint import without_drops
from evopress.search.proposals import Scores, proposed, spent

Switch = tuple[int, int]
"""A unit and the level it would go to."""

CAUTIONS = (0.25, 0.5, 1.0, 2.0)
"""Factors on the noise of a single score, which every switch has to gain besides."""


@checked_dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Refinement:
    """One refinement: tokens of its table, of every switch that is measured, and of the final comparison."""

    table_tokens: int = Field(gt=0)
    share: float = Field(gt=0, le=1)
    tokens: int = Field(gt=0)
    line_tokens: int = Field(gt=0)
    excerpt: int | None = Field(default=None, gt=0)


@dataclass(frozen=True)
class _Measured:
    """What single switches away from the profile of `effects` did to the fitness on one minibatch."""

    effects: Effects
    gains: dict[Switch, float]


def refined(
    space: Space, caps: tuple[Cap, ...], profile: Profile, settings: Refinement, times: int
) -> Generator[Question, Answer, Profile]:
    """`profile`, which holds `caps`, or a better one, after so many refinements; what is dropped stays as it is."""
    caps = without_drops(space, caps, profile)
    known: list[_Measured] = []
    for number in range(1, times + 1):
        label = f"refinement {number}/{times}"
        effects = yield from effects_at(space, profile, settings.table_tokens, 1, settings.excerpt)
        switches = promising(space, caps, effects, settings.share)
        if not switches:
            break
        singles = [switched(space, profile, *switch) for switch in switches]
        asked = f"{label}, {len(singles)} switches"
        base, *fitness = yield from fitness_of(
            Batch((profile, *singles), settings.tokens, asked, excerpt=settings.excerpt)
        )
        check_numbers([base])
        gains = {switch: found - base for switch, found in zip(switches, fitness, strict=True)}
        known.append(_Measured(effects, gains))
        candidates = list(dict.fromkeys([profile, *_path(space, caps, known)]))
        asked = f"{label}, line search"
        fitness = yield from fitness_of(Batch(tuple(candidates), settings.line_tokens, asked, excerpt=settings.excerpt))
        check_numbers(fitness)
        profile = best_first(candidates, fitness)[0]
    return profile


def promising(space: Space, caps: tuple[Cap, ...], effects: Effects, share: float) -> list[Switch]:
    """The best `share` of the switches one level up, and of those one level down, by predicted effect per cost.

    A gain that the first order promises of a switch down is left out: it is the lesser part, and noise is picked.
    """
    ups: list[tuple[bool, float, Switch]] = []
    downs: list[tuple[bool, float, Switch]] = []
    for unit in sorted(unit for cap in caps for unit in cap.members):
        options, current = space.units[unit].levels, effects.profile[unit]
        for level in (current - 1, current + 1):
            if 0 <= level < len(options):
                extra = options[level].cost - options[current].cost
                slope = effects.first[unit][level] if extra > 0 else 0.0
                rate = (slope + effects.second[unit][level]) / max(abs(extra), 1)
                (ups if extra > 0 else downs).append((isnan(rate), rate, (unit, level)))
    return sorted(switch for side in (ups, downs) for *_, switch in sorted(side)[: ceil(len(side) * share)])


def _path(space: Space, caps: tuple[Cap, ...], known: list[_Measured]) -> list[Profile]:
    """Profiles of the switches that were measured, from bold to timid; what they leave over goes by the table."""
    profile, effects = known[-1].effects.profile, averaged(space, [measured.effects for measured in known])
    gains: dict[Switch, list[float]] = {}
    for measured in known:
        for (unit, level), gain in measured.gains.items():
            if measured.effects.profile[unit] == profile[unit] and isfinite(gain):
                gains.setdefault((unit, level), []).append(gain)
    mean = {switch: fmean(found) for switch, found in gains.items()}
    fitted = _fitted(space, effects, mean)
    noise = median(abs(mean[switch] - fitted[switch]) for switch in mean) if mean else 0.0
    table = [
        [sum(both) for both in zip(*unit, strict=True)] for unit in zip(effects.first, effects.second, strict=True)
    ]
    found = []
    for caution in CAUTIONS:
        scores: Scores = [[inf] * len(unit.levels) for unit in space.units]
        for unit, level in enumerate(profile):
            scores[unit][level] = 0.0
        for unit, level in mean:
            scores[unit][level] = (mean[unit, level] + fitted[unit, level]) / 2 + caution * noise
        found.append(spent(space, caps, proposed(space, caps, profile, scores), table))
    return found


def _fitted(space: Space, effects: Effects, measured: dict[Switch, float]) -> dict[Switch, float]:
    """Least squares of `measured` on the two orders of `effects`, for switches up and down apart."""

    def is_up(switch: Switch) -> bool:
        unit, level = switch
        return space.units[unit].levels[level].cost > space.units[unit].levels[effects.profile[unit]].cost

    def orders_of(switch: Switch) -> tuple[float, float]:
        unit, level = switch
        return effects.first[unit][level], effects.second[unit][level]

    fitted = dict(measured)  # of switches of which the table has no number
    for side in (True, False):
        members = [switch for switch in measured if is_up(switch) == side and all(map(isfinite, orders_of(switch)))]
        if members:
            orders = np.array([orders_of(switch) for switch in members])
            slopes = np.linalg.lstsq(orders, np.array([measured[switch] for switch in members]), rcond=None)[0]
            fitted |= dict(zip(members, (orders @ slopes).tolist(), strict=True))
    return fitted
