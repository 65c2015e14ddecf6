"""Refinement: where a table no longer tells which switches pay, the most promising ones are measured one by one.

Close to the best profile what a single switch gains is a hundredth of the KL and less. There a table finds the switches
worth a look, but is too rough to choose among them; measuring all of them would cost more than all rounds before. So
many small refinements each measure a few, and all that is known of a switch counts while its unit stays as it is::

    table ← first- and second-order effect of every switch at profile, the mean with those of earlier tables
    estimates ← of every switch one level up or down (see `estimated`): what was measured, drawn towards the table
    promising ← the `share` of best estimated effect per cost, of switches up and of switches down
    measured ← the fitness of each alone, less that of profile, all on one minibatch
    path ← for each caution c: the profile of measured switches of least summed estimate + c · noise
    profile ← the fittest of path and profile on another minibatch
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from math import ceil, inf, isfinite, isnan
from statistics import fmean, median

import numpy as np
from pydantic import Field

from evopress.runtime.config_class import config_class
from evopress.search.base import Answer, Batch, Question, best_first, check_numbers, fitness_of
from evopress.search.baselines.additive import switched
from evopress.search.effects import Effects, averaged, effects_at
from evopress.search.joint import without_drops
from evopress.search.proposals import Scores, proposed, spent
from evopress.space.budget import Cap
from evopress.space.units import Profile, Space

Switch = tuple[int, int]
"""A unit and the level it would go to."""

CAUTIONS = (0.25, 0.5, 1.0, 2.0)
"""Factors on the noise of a single estimate, which every switch has to gain besides."""

RAW_SLOPES = ((1.0, 1.0), (0.0, 1.0))
"""Of the two orders, for ups and downs, until there are measurements to fit them to.

What the first order promises of a switch down is the lesser part, and its noise would be picked.
"""

ENOUGH = 3
"""Measured switches to which two slopes are fitted."""


@config_class
class Refinement:
    """One refinement: tokens of its table, of every switch that is measured, and of the final comparison."""

    table_tokens: int = Field(gt=0)
    share: float = Field(gt=0, le=1)
    tokens: int = Field(gt=0)
    line_tokens: int = Field(gt=0)
    excerpt: int | None = Field(default=None, gt=0)


@dataclass(frozen=True)
class Measured:
    """What single switches away from `profile` did to the fitness on one minibatch."""

    profile: Profile
    gains: dict[Switch, float]


@dataclass(frozen=True)
class Estimates:
    """What every switch by one level from `profile` would do to the fitness; `measured` ones left it a number.

    `noise` is the median difference between what was measured and what the table says of it.
    """

    profile: Profile
    gains: dict[Switch, float]
    measured: frozenset[Switch]
    noise: float


def refined(
    space: Space,
    caps: tuple[Cap, ...],
    profile: Profile,
    settings: Refinement,
    times: int,
    tables: Sequence[Effects] = (),
) -> Generator[Question, Answer, Profile]:
    """`profile`, which holds `caps`, or a better one, after so many refinements; what is dropped stays as it is.

    `tables` are those made on the way to `profile`.
    """
    caps = without_drops(space, caps, profile)
    tables, known = list(tables), list[Measured]()
    for number in range(1, times + 1):
        label = f"refinement {number}/{times}"
        tables.append((yield from effects_at(space, profile, settings.table_tokens, 1, settings.excerpt)))
        effects = averaged(space, tables)
        switches = promising(space, caps, estimated(space, caps, effects, known), settings.share)
        if not switches:
            break
        singles = [switched(space, profile, *switch) for switch in switches]
        asked = f"{label}, {len(singles)} switches"
        base, *fitness = yield from fitness_of(
            Batch((profile, *singles), settings.tokens, asked, excerpt=settings.excerpt)
        )
        check_numbers([base])
        gains = {switch: found - base for switch, found in zip(switches, fitness, strict=True)}
        known.append(Measured(profile, gains))
        path = _path(space, caps, effects, estimated(space, caps, effects, known))
        candidates = list(dict.fromkeys([profile, *path]))
        asked = f"{label}, line search"
        fitness = yield from fitness_of(Batch(tuple(candidates), settings.line_tokens, asked, excerpt=settings.excerpt))
        check_numbers(fitness)
        profile = best_first(candidates, fitness)[0]
    return profile


def estimated(space: Space, caps: tuple[Cap, ...], effects: Effects, known: Sequence[Measured]) -> Estimates:
    """Of every switch of the caps by one level from the profile of `effects`.

    The table foretells by the least squares of what was measured on its two orders, ups and downs apart. Its word is
    one more measurement: measurements have their noise, and the best of many are the luckiest.
    """
    found: dict[Switch, list[float]] = {}
    for measured in known:
        for (unit, level), gain in measured.gains.items():
            if measured.profile[unit] == effects.profile[unit]:
                found.setdefault((unit, level), []).append(gain)
    sound = {switch: fmean(values) for switch, values in found.items() if all(map(isfinite, values))}
    gains: dict[Switch, float] = {}
    misfits = []
    for switches, raw in zip(neighbours(space, caps, effects.profile), RAW_SLOPES, strict=True):
        foretold = _foretold(effects, switches, sound, raw)
        for switch in switches:
            told = [foretold[switch]] if isfinite(foretold[switch]) or switch not in found else []
            gains[switch] = fmean([*found.get(switch, ()), *told])
        misfits += [abs(sound[s] - foretold[s]) for s in switches if s in sound and isfinite(foretold[s])]
    return Estimates(effects.profile, gains, frozenset(sound), median(misfits) if misfits else 0.0)


def promising(space: Space, caps: tuple[Cap, ...], estimates: Estimates, share: float) -> list[Switch]:
    """The best `share` of the switches up, and of those down, by estimated effect per cost."""

    def rank(switch: Switch) -> tuple[bool, float, Switch]:
        unit, level = switch
        options, gain = space.units[unit].levels, estimates.gains[switch]
        extra = options[level].cost - options[estimates.profile[unit]].cost
        return isnan(gain), gain / max(abs(extra), 1), switch

    sides = neighbours(space, caps, estimates.profile)
    return sorted(switch for side in sides for switch in sorted(side, key=rank)[: ceil(len(side) * share)])


def neighbours(space: Space, caps: tuple[Cap, ...], profile: Profile) -> tuple[list[Switch], list[Switch]]:
    """All switches by one level that the caps are about: to a costlier one, and to one that is not."""
    ups: list[Switch] = []
    downs: list[Switch] = []
    for unit in sorted(unit for cap in caps for unit in cap.members):
        levels, current = space.units[unit].levels, profile[unit]
        for level in (current - 1, current + 1):
            if 0 <= level < len(levels):
                (ups if levels[level].cost > levels[current].cost else downs).append((unit, level))
    return ups, downs


def _foretold(
    effects: Effects, switches: Sequence[Switch], measured: dict[Switch, float], slopes: tuple[float, float]
) -> dict[Switch, float]:
    """Slopes times orders: those of least squares on what was measured, where that is enough for a fit."""
    orders = {(unit, level): (effects.first[unit][level], effects.second[unit][level]) for unit, level in switches}
    known = [switch for switch in switches if switch in measured and all(map(isfinite, orders[switch]))]
    if len(known) >= ENOUGH:
        fit = np.linalg.lstsq(
            np.array([orders[switch] for switch in known]), np.array([measured[switch] for switch in known]), rcond=None
        )
        slopes = tuple(fit[0].tolist())
    return {switch: float(np.dot(slopes, both)) for switch, both in orders.items()}


def _path(space: Space, caps: tuple[Cap, ...], effects: Effects, estimates: Estimates) -> list[Profile]:
    """Profiles of the switches that were measured, from bold to timid; what they leave over goes by the table."""
    table = [
        [sum(both) for both in zip(*unit, strict=True)] for unit in zip(effects.first, effects.second, strict=True)
    ]
    found = []
    for caution in CAUTIONS:
        scores: Scores = [[inf] * len(unit.levels) for unit in space.units]
        for unit, level in enumerate(effects.profile):
            scores[unit][level] = 0.0
        for unit, level in estimates.measured:
            scores[unit][level] = estimates.gains[unit, level] + caution * estimates.noise
        found.append(spent(space, caps, proposed(space, caps, effects.profile, scores), table))
    return found
