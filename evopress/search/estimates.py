"""Estimated effects of single switches: measurements, combined with a table's predictions that are fitted to them."""

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
"""Weights of the first and second order, for switches up and for switches down, until there are enough measurements.

For switches down, the first order is left out. It is the smaller part of their effects, so the lowest scores would be
those with the most noise.
"""

MIN_MEASUREMENTS = 3
"""Number of measured switches that are needed to fit the two weights."""


@dataclass(frozen=True)
class Measurement:
    """The measured changes of the fitness for single switches from `profile`, all on one minibatch."""

    profile: Profile
    changes: Mapping[Switch, float]


@dataclass(frozen=True)
class Estimates:
    """The estimated change of the fitness for every switch from `profile` by one level.

    `measured` are the switches with finite measurements. `noise` is the median absolute difference between their
    measurements and the predictions.
    """

    profile: Profile
    changes: dict[Switch, float]
    measured: frozenset[Switch]
    noise: float


def estimate_changes(
    space: Space, caps: Sequence[Cap], effects: Effects, *, measurements: Sequence[Measurement]
) -> Estimates:
    """Estimates for every switch by one level of the units under the caps, from the profile of `effects`.

    The predictions are a least-squares fit of the two orders of `effects` to the measurements. Switches up and switches
    down are fitted separately. An estimate is the mean of a switch's measurements and its prediction. Including the
    prediction counters the winner's curse: the switches with the best measurements are mostly lucky.
    """
    values = _values_by_switch(measurements, effects.profile)
    finite = {switch: fmean(changes) for switch, changes in values.items() if all(map(isfinite, changes))}
    estimates: dict[Switch, float] = {}
    misfits = []
    directions = neighbouring_switches(space, caps, effects.profile)
    for switches, default_slopes in zip(directions, DEFAULT_SLOPES, strict=True):
        predictions = _predictions(effects, switches, finite, default_slopes=default_slopes)
        for switch in switches:
            use_prediction = isfinite(predictions[switch]) or switch not in values
            estimates[switch] = fmean([*values.get(switch, ()), *([predictions[switch]] if use_prediction else [])])
        misfits += [abs(finite[s] - predictions[s]) for s in switches if s in finite and isfinite(predictions[s])]
    return Estimates(effects.profile, estimates, frozenset(finite), median(misfits) if misfits else 0.0)


def promising_switches(space: Space, caps: Sequence[Cap], estimates: Estimates, *, share: float) -> list[Switch]:
    """The best `share` of the switches up, and of the switches down, by estimated change per cost."""

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
    """The weighted sum of the two orders. The weights are fitted to the measurements if there are enough of them."""
    orders = {(unit, level): (effects.first[unit][level], effects.second[unit][level]) for unit, level in switches}
    usable = [switch for switch in switches if switch in measured and all(map(isfinite, orders[switch]))]
    slopes = default_slopes
    if len(usable) >= MIN_MEASUREMENTS:
        X = np.array([orders[switch] for switch in usable])
        y = np.array([measured[switch] for switch in usable])
        slopes = tuple(np.linalg.lstsq(X, y, rcond=None)[0].tolist())
    with np.errstate(over="ignore", invalid="ignore"):  # infinite effects are estimates too
        return {switch: float(np.dot(slopes, both)) for switch, both in orders.items()}
