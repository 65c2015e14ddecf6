"""The plots of one run. Each returns None where there is nothing to show."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import isfinite

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from evopress.report.record import Choice, Run
from evopress.report.style import (
    Style,
    as_grid,
    duration,
    fill_cell,
    log_scale,
    megabytes,
    new_axes,
    shortened,
    viridis,
)

MAX_BARS = 12
"""Levels that a bar chart tells apart; more are put together by tenths."""


def fitness_over_tokens(run: Run, style: Style) -> Figure | None:
    """Every profile tried, against the tokens spent until then, and the best so far on the largest minibatch."""
    answers = [answer for answer in run.answers if isfinite(answer.best)]
    if not answers:
        return None
    figure, axes = new_axes(3.1)
    sizes = sorted({answer.tokens for answer in answers})
    few, many = style.shades
    for tokens, colour in zip(sizes, viridis(np.linspace(many, few, len(sizes))), strict=True):
        points = [(a.spent, v) for a in answers if a.tokens == tokens for v in a.values if isfinite(v)]
        x, y = zip(*points, strict=True)
        size = 9 if sum(len(a.values) for a in answers) > 200 else 20
        axes.scatter(
            x, y, s=size, color=colour, alpha=0.7, linewidths=0, label=f"on {tokens:,} tokens", rasterized=True
        )
    largest = [answer for answer in answers if answer.tokens == sizes[-1]]
    spent = [answer.spent for answer in largest]
    each = [answer.best for answer in largest]
    best = np.minimum.accumulate(each)
    axes.plot(spent, each, color=style.other, lw=0.8, ls=":", label="best of its minibatch")
    axes.plot(spent, best, color=style.other, lw=1.8, drawstyle="steps-post", label="best so far")
    values = [value for answer in answers for value in answer.values if isfinite(value)]
    if min(values) > 0 and max(values) / min(values) > 10:
        log_scale(axes)
    axes.set_xlabel("tokens through the whole model")
    axes.set_ylabel({"kl": "KL, nats per token", "": "fitness"}.get(run.fitness, shortened(run.fitness)))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(axis="y", lw=0.5)
    axes.legend(fontsize=8, loc="upper right")
    return figure


def profile_map(run: Run, style: Style) -> Figure | None:
    """Blocks down, kinds of layers across; every cell shows its level, brighter where more is kept."""
    cells = run.cells
    if not cells:
        return None
    kinds, blocks = run.kinds, range(max(block for block, _ in cells) + 1)
    figure, axes = new_axes(0.6 + 0.19 * len(blocks))
    colour = _colours(run.choices)
    for (block, kind), choice in cells.items():
        fill_cell(axes, (kinds.index(kind), block), colour(choice.kept), choice.label.removesuffix("bit")[:9])
    as_grid(axes, kinds, len(blocks))
    return figure


def level_histogram(run: Run, style: Style) -> Figure | None:
    """How many units received each level."""
    groups = level_groups(run.choices)
    if not groups:
        return None
    figure, axes = new_axes(0.7 + 0.24 * len(groups))
    colour, counts = _colours(run.choices), [len(group.members) for group in groups]
    bars = axes.barh(
        [shortened(group.label) for group in groups],
        counts,
        color=[colour(group.kept) for group in groups],
        edgecolor=style.faint,
        lw=0.6,
    )
    axes.bar_label(bars, padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("units")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.tick_params(length=0, axis="y")
    axes.margins(x=0.1)
    return figure


def bytes_by_part(run: Run, style: Style) -> Figure | None:
    """Dense against searched: what is not compressed, and the units by level."""
    parts = byte_parts(run)
    if not parts:
        return None
    figure, axes = new_axes(2.5)
    colour, bottom = _colours(run.choices), {"dense": 0.0, "searched": 0.0}
    shades = {group.label: colour(group.kept) for group in level_groups(run.choices)}
    for row, label, size in parts:
        fill = shades.get(label, style.faint)
        hatch = "////" if label == DENSE_UNITS else None
        axes.barh(
            row,
            size / 1e6,
            left=bottom[row] / 1e6,
            color=fill,
            label=shortened(label, 30),
            hatch=hatch,
            edgecolor=style.background,
            lw=0.6,
            height=0.6,
        )
        bottom[row] += size
    for place, total in enumerate(bottom.values()):
        axes.text(total / 1e6, place, f" {megabytes(total)} MB", va="center", fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.set_xlabel("MB")
    axes.tick_params(length=0, axis="y")
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(unique.values(), unique.keys(), loc="outside lower center", ncols=3, fontsize=8)
    return figure


def seconds_by_stage(run: Run, style: Style) -> Figure | None:
    """Where the time went; with the peak of memory where it was recorded."""
    if not run.seconds:
        return None
    figure, axes = new_axes(0.7 + 0.28 * len(run.seconds))
    bars = axes.barh(
        [shortened(stage) for stage in run.seconds], list(run.seconds.values()), color=style.accent, height=0.6
    )
    peaks = [f", {run.peak_bytes[stage] / 1e9:.2g} GB" if stage in run.peak_bytes else "" for stage in run.seconds]
    labels = [f"{duration(seconds)}{peak}" for seconds, peak in zip(run.seconds.values(), peaks, strict=True)]
    axes.bar_label(bars, labels=labels, padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("seconds")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.tick_params(length=0, axis="y")
    axes.margins(x=0.3 if run.peak_bytes else 0.2)
    return figure


def kl_by_position(run: Run, style: Style) -> Figure | None:
    """Mean KL at each position of a test window, of the searched profile and of the uniform one."""
    found = {name: run.candidates[name].kl_by_position for name in ("uniform", "searched") if name in run.candidates}
    series = [(name, values) for name, sets in found.items() for values in list(sets.values())[:1] if values]
    if not series:
        return None
    figure, axes = new_axes(2.8)
    for (name, values), colour in zip(series, (style.other, style.accent), strict=False):
        axes.plot(range(len(values)), values, lw=0.6, alpha=0.45, color=colour)
        axes.plot(*_smoothed(values), lw=1.8, color=colour, label=name)
    shown = [value for _, values in series for value in values if isfinite(value)]
    if shown and min(shown) > 0 and max(shown) / min(shown) > 50:
        log_scale(axes)
    axes.set_xlabel("position in the window")
    axes.set_ylabel("KL, nats per token")
    axes.legend(fontsize=8)
    axes.grid(axis="y", lw=0.5)
    return figure


def _smoothed(values: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Positions and means over a sixteenth of them around each, which shows the course through the noise."""
    width = max(1, len(values) // 16)
    means = np.convolve(values, np.full(width, 1 / width), mode="valid")
    return np.arange(len(means)) + (width - 1) / 2, means


@dataclass(frozen=True)
class LevelGroup:
    """Units shown as one bar."""

    label: str
    kept: float
    members: tuple[Choice, ...]


def level_groups(choices: Iterable[Choice]) -> list[LevelGroup]:
    """Units by level, the least compressed first; by tenths of what is kept where there are too many levels."""
    choices = tuple(choices)
    many = len({choice.label for choice in choices}) > MAX_BARS and all(0 <= c.kept <= 1 for c in choices)
    groups: dict[str, list[Choice]] = {}
    for choice in sorted(choices, key=lambda choice: -choice.kept):
        groups.setdefault(_tenth(choice) if many else choice.label, []).append(choice)
    return [
        LevelGroup(label, sum(choice.kept for choice in members) / len(members), tuple(members))
        for label, members in groups.items()
    ]


def _tenth(choice: Choice) -> str:
    low = min(int(round(1 - choice.kept, 6) * 10), 9)
    return f"{low / 10:.1f} to {(low + 1) / 10:.1f}"


DENSE_UNITS = "16-bit weights"
FIXED = "embeddings, norms and other"


def byte_parts(run: Run) -> list[tuple[str, str, int]]:
    """(candidate, part, bytes); the parts of a candidate add up to its size. Empty where it is not known."""
    dense, searched = run.candidates.get("dense"), run.candidates.get("searched")
    if not dense or not searched or not run.choices:
        return []
    fixed = searched.size_bytes - sum(choice.size_bytes for choice in run.choices)
    sizes = [(group.label, sum(c.size_bytes for c in group.members)) for group in level_groups(run.choices)]
    parts = [("dense", FIXED, fixed), ("dense", DENSE_UNITS, dense.size_bytes - fixed), ("searched", FIXED, fixed)]
    return parts + [("searched", label, size) for label, size in sizes if size]


def _colours(choices: Sequence[Choice]) -> Callable[[float], tuple[float, ...]]:
    """Viridis from what is least kept to what is most kept."""
    kept = [choice.kept for choice in choices]
    low, high = min(kept), max(kept)

    def colour(value: float) -> tuple[float, ...]:
        return matplotlib.colormaps["viridis"]((value - low) / (high - low) if high > low else 0.5)

    return colour
