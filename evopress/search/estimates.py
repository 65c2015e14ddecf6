"""Estimated effects of single switches: measurements combined with predictions of a table that is fitted to them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, isfinite, isnan
from statistics import fmean, median

import numpy as np

from evopress.search.effects import Effects
from evopress.search.switches import Switch, neighbouring_switches
from evopress.space.budget import Cap
from evopress.space.units import Profile, Space

DEFAULT_SLOPES = ((1.0, 1.0), (0.0, 1.0))
"""Weights of the two orders, for switches up and for switches down, until there are measurements to fit them to.

The first order is the smaller part of the effect of a switch down. The lowest scores would be those with most noise.
"""

MIN_MEASUREMENTS = 3
"""Number of measured switches that are needed to fit the two slopes."""


@dataclass(frozen=True)
class Measurement:
    """The measured change of the fitness for single switches from `profile`, all on one minibatch."""

    profile: Profile
    changes: Mapping[Switch, float]


@dataclass(frozen=True)
class Estimates:
    """The estimated change of the fitness for every switch by one level from `profile`.

    `measured` are the switches with finite measurements. `noise` is the median difference between those measurements
    and the predictions.
    """

    profile: Profile
    changes: dict[Switch, float]
    measured: frozenset[Switch]
    noise: float


def estimate_changes(
    space: Space, caps: Sequence[Cap], effects: Effects, *, measurements: Sequence[Measurement]
) -> Estimates:
    """Estimates for every switch by one level from the profile of `effects`, of the units under the caps.

    Predictions are a least-squares fit of the two orders of `effects` to the measurements, with switches up and down
    fitted separately. The prediction counts as one more measurement in the mean, to counter the winner's curse: the
    switches with the best measurements are those with the luckiest noise.
    """
    values = _values_by_switch(measurements, effects.profile)
    finite = {switch: fmean(changes) for switch, changes in values.items() if all(map(isfinite, changes))}
    estimates: dict[Switch, float] = {}
    misfits = []
    directions = neighbouring_switches(space, caps, effects.profile)
    for switches, default_slopes in zip(directions, DEFAULT_SLOPES, strict=True):
        predictions = _predictions(effects, switches, finite, default_slopes=default_slopes)
        for switch in switches:
            counts = isfinite(predictions[switch]) or switch not in values
            estimates[switch] = fmean([*values.get(switch, ()), *([predictions[switch]] if counts else [])])
        misfits += [abs(finite[s] - predictions[s]) for s in switches if s in finite and isfinite(predictions[s])]
    return Estimates(effects.profile, estimates, frozenset(finite), median(misfits) if misfits else 0.0)


def promising_switches(space: Space, caps: Sequence[Cap], estimates: Estimates, *, share: float) -> list[Switch]:
    """The best `share` of the switches up, and of those down, by estimated change per cost."""

    def rank(switch: Switch) -> tuple[bool, float, Switch]:
        unit, level = switch
        options, change = space.units[unit].levels, estimates.changes[switch]
        extra = options[level].cost - options[estimates.profile[unit]].cost
        return isnan(change), change / max(abs(extra), 1), switch

    directions = neighbouring_switches(space, caps, estimates.profile)
    return sorted(s for switches in directions for s in sorted(switches, key=rank)[: ceil(len(switches) * share)])


def _values_by_switch(measurements: Sequence[Measurement], profile: Profile) -> dict[Switch, list[float]]:
    """All measured changes of each switch, from measurements in which its unit had the same level as in `profile`."""
    values: dict[Switch, list[float]] = {}
    for measurement in measurements:
        for (unit, level), change in measurement.changes.items():
            if measurement.profile[unit] == profile[unit]:
                values.setdefault((unit, level), []).append(change)
    return values


def _predictions(
    effects: Effects,
    switches: Sequence[Switch],
    measured: Mapping[Switch, float],
    *,
    default_slopes: tuple[float, float],
) -> dict[Switch, float]:
    """Slopes times orders. The slopes are fitted to what was measured, if that is enough for a fit."""
    orders = {(unit, level): (effects.first[unit][level], effects.second[unit][level]) for unit, level in switches}
    usable = [switch for switch in switches if switch in measured and all(map(isfinite, orders[switch]))]
    slopes = default_slopes
    if len(usable) >= MIN_MEASUREMENTS:
        X = np.array([orders[switch] for switch in usable])
        y = np.array([measured[switch] for switch in usable])
        slopes = tuple(np.linalg.lstsq(X, y, rcond=None)[0].tolist())
    return {switch: float(np.dot(slopes, both)) for switch, both in orders.items()}
