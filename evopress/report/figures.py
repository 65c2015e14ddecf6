"""The plots of one run. Each returns None if there is nothing to show."""

from collections.abc import Callable, Sequence
from math import isfinite

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from evopress.report.axes import block_grid, fill_cell, height_of_labels, log_scale, new_axes, viridis
from evopress.report.choices import Choice
from evopress.report.level_groups import DENSE_UNITS, byte_parts, level_groups
from evopress.report.record import Run
from evopress.report.search_history import EvaluatedBatch
from evopress.report.style import Style
from evopress.report.wording import duration, megabytes, shortened


def fitness_over_tokens(run: Run, style: Style) -> Figure | None:
    """The fitness of every profile against the tokens spent so far, and the best so far on the largest minibatches."""
    batches = [batch for batch in run.batches if isfinite(batch.best)]
    if not batches:
        return None
    figure, axes = new_axes(3.1)
    sizes = sorted({batch.num_tokens for batch in batches})
    few, many = style.shades
    point_size = 9 if sum(len(batch.fitness) for batch in batches) > 200 else 20
    for num_tokens, colour in zip(sizes, viridis(np.linspace(many, few, len(sizes))), strict=True):
        x, y = zip(*_points(batches, num_tokens), strict=True)
        label = f"on {num_tokens:,} tokens"
        axes.scatter(x, y, s=point_size, color=colour, alpha=0.7, linewidths=0, label=label, rasterized=True)
    largest = [batch for batch in batches if batch.num_tokens == sizes[-1]]
    tokens_spent = [batch.tokens_spent for batch in largest]
    best_of_batch = [batch.best for batch in largest]
    best_so_far = np.minimum.accumulate(best_of_batch)
    axes.plot(tokens_spent, best_of_batch, color=style.other, lw=0.8, ls=":", label="best of its minibatch")
    axes.plot(tokens_spent, best_so_far, color=style.other, lw=1.8, drawstyle="steps-post", label="best so far")
    values = [value for batch in batches for value in batch.fitness if isfinite(value)]
    if min(values) > 0 and max(values) / min(values) > 10:
        log_scale(axes)
    axes.set_xlabel("tokens through the whole model")
    axes.set_ylabel({"kl": "KL, nats per token", "": "fitness"}.get(run.fitness, shortened(run.fitness)))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(axis="y", lw=0.5)
    axes.legend(fontsize=8, loc="upper right")
    return figure


def _points(batches: Sequence[EvaluatedBatch], num_tokens: int) -> list[tuple[float, float]]:
    """(tokens spent, fitness) for all profiles with finite fitness in minibatches of `num_tokens`."""
    return [
        (batch.tokens_spent, value)
        for batch in batches
        if batch.num_tokens == num_tokens
        for value in batch.fitness
        if isfinite(value)
    ]


def profile_map(run: Run, style: Style) -> Figure | None:
    """A grid with a row per block and a column per kind of layer. A cell shows its level, brighter if more is kept."""
    cells = run.cells
    if not cells:
        return None
    kinds, num_blocks = run.kinds, max(block for block, _ in cells) + 1
    figure, axes = new_axes(0.6 + 0.19 * num_blocks + height_of_labels(kinds))
    colour_of = _colours(run.choices)
    for (block, kind), choice in cells.items():
        label = choice.label.removesuffix("bit")[:9]
        fill_cell(axes, (kinds.index(kind), block), colour=colour_of(choice.kept), text=label)
    block_grid(axes, kinds, num_blocks)
    return figure


def level_histogram(run: Run, style: Style) -> Figure | None:
    """How many units received each level."""
    groups = level_groups(run.choices)
    if not groups:
        return None
    figure, axes = new_axes(0.7 + 0.24 * len(groups))
    colour_of, counts = _colours(run.choices), [len(group.members) for group in groups]
    bars = axes.barh(
        [shortened(group.label) for group in groups],
        counts,
        color=[colour_of(group.kept) for group in groups],
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
    """The sizes of the dense and the searched model, split into the units at each level and all other parts."""
    parts = byte_parts(run)
    if not parts:
        return None
    figure, axes = new_axes(2.5)
    colour_of, total = _colours(run.choices), {"dense": 0.0, "searched": 0.0}
    shades = {group.label: colour_of(group.kept) for group in level_groups(run.choices)}
    for candidate, label, size in parts:
        axes.barh(
            candidate,
            size / 1e6,
            left=total[candidate] / 1e6,
            color=shades.get(label, style.faint),
            label=shortened(label, 30),
            hatch="////" if label == DENSE_UNITS else None,
            edgecolor=style.background,
            lw=0.6,
            height=0.6,
        )
        total[candidate] += size
    for row, size_bytes in enumerate(total.values()):
        axes.text(size_bytes / 1e6, row, f" {megabytes(size_bytes)} MB", va="center", fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.set_xlabel("MB")
    axes.tick_params(length=0, axis="y")
    handles, labels = axes.get_legend_handles_labels()
    handle_of = dict(zip(labels, handles, strict=True))
    figure.legend(handle_of.values(), handle_of.keys(), loc="outside lower center", ncols=3, fontsize=8)
    return figure


def seconds_by_stage(run: Run, style: Style) -> Figure | None:
    """The time that each stage took, with its peak memory if that was recorded."""
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


def _colours(choices: Sequence[Choice]) -> Callable[[float], tuple[float, ...]]:
    """A function from what a unit keeps to a colour of viridis, scaled to the range of `choices`."""
    kept = [choice.kept for choice in choices]
    low, high = min(kept), max(kept)

    def colour(value: float) -> tuple[float, ...]:
        return matplotlib.colormaps["viridis"]((value - low) / (high - low) if high > low else 0.5)

    return colour
