"""Plots of KL from the dense model: by position in a window, and while the model is tuned."""

from collections.abc import Mapping, Sequence
from math import isfinite

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from evopress.report.axes import log_scale, new_axes
from evopress.report.record import CANDIDATES, Run
from evopress.report.style import Style

LINES = {
    "uniform": ("other", "-"),
    "searched": ("accent", "-"),
    "tuned": ("accent", "--"),
    "uniform_tuned": ("other", "--"),
}
"""The colour of every candidate in a style, and the kind of its line: dashed if it is tuned."""


def kl_by_position(run: Run, style: Style) -> Figure | None:
    """Mean KL at each position of a test window, for every candidate but the dense model."""
    curves = position_curves(run)
    if not curves:
        return None
    figure, axes = new_axes(2.8)
    for name, values in curves.items():
        colour, kind = _line(name, style)
        axes.plot(range(len(values)), values, lw=0.6, alpha=0.45, color=colour)
        axes.plot(*_smoothed(values), lw=1.8, color=colour, ls=kind, label=name)
    shown = [value for values in curves.values() for value in values if isfinite(value)]
    if shown and min(shown) > 0 and max(shown) / min(shown) > 50:
        log_scale(axes)
    _label(axes, "position in the window")
    return figure


def position_curves(run: Run) -> Mapping[str, Sequence[float]]:
    """KL by position on the first test set, by name of the candidate."""
    first = {name: next(iter(run.candidates[name].kl_by_position.values()), ()) for name in run.candidates}
    return {name: values for name, values in first.items() if values and name in LINES}


def kl_while_tuning(run: Run, style: Style) -> Figure | None:
    """KL on validation tokens at each check, for every model that was tuned."""
    if not run.tuning:
        return None
    figure, axes = new_axes(2.8)
    for name in filter(run.tuning.get, CANDIDATES):
        colour, kind = _line(name, style)
        axes.plot(*zip(*run.tuning[name], strict=True), marker=".", lw=1.8, color=colour, ls=kind, label=name)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    _label(axes, "step")
    return figure


def _line(name: str, style: Style) -> tuple[str, str]:
    colour, kind = LINES[name]
    return getattr(style, colour), kind


def _label(axes: Axes, horizontal: str) -> None:
    axes.set_xlabel(horizontal)
    axes.set_ylabel("KL, nats per token")
    axes.legend(fontsize=8)
    axes.grid(axis="y", lw=0.5)


def _smoothed(values: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Positions, and moving averages over a sixteenth of the curve, which show the trend."""
    width = max(1, len(values) // 16)
    means = np.convolve(values, np.full(width, 1 / width), mode="valid")
    return np.arange(len(means)) + (width - 1) / 2, means
