"""The plots that compare runs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle
from math import isfinite, nan

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evopress.report.axes import block_grid, fill_cell, log_scale, new_axes, viridis
from evopress.report.record import Run
from evopress.report.style import Style
from evopress.report.wording import shortened

MEMORY, FILE, BITS = "MB in memory", "MB", "bits per weight, scales included"
"""The units of the size axis, as its label says them."""


@dataclass(frozen=True)
class Point:
    """The size (in the unit of `size_axis`) and the KL of one model."""

    method: str
    candidate: str
    size: float
    kl: float


def pareto_points(runs: Sequence[Run], data_set: str) -> list[Point]:
    """The uniform and the searched profile of every run, with sizes as `size_axis` says."""
    in_bytes, axis = _have_same_model(runs), size_axis(runs)
    points = []
    for run in runs:
        for name in ("uniform", "searched"):
            scores = run.candidates.get(name)
            kl = scores.kl.get(data_set, nan) if scores else nan
            if scores and isfinite(kl):
                sizes = {
                    MEMORY: sum(run.memory.get(name, {}).values()) / 1e6,
                    FILE: scores.size_bytes / 1e6,
                    BITS: scores.bits_per_weight_with_scales,
                }
                points.append(Point(run.method if in_bytes else f"{run.model} {run.method}", name, sizes[axis], kl))
    return points


def size_axis(runs: Sequence[Run]) -> str:
    """The unit of sizes: memory if all runs have it, otherwise bytes of the file, or bits if the models differ."""
    if not _have_same_model(runs):
        return BITS
    return MEMORY if all({"uniform", "searched"} <= run.memory.keys() for run in runs) else FILE


def pareto_front(points: Iterable[Point]) -> list[Point]:
    """The points that no other point dominates, by size. Such a point is no larger, no worse, and different."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.size, point.kl)):
        if not front or point.kl < front[-1].kl:
            front.append(point)
    return front


def pareto_plot(runs: Sequence[Run], data_set: str, style: Style) -> Figure | None:
    """KL against the sizes of `size_axis`, with a line along the Pareto front."""
    points = pareto_points(runs, data_set)
    if not points:
        return None
    figure, axes = new_axes(3.4)
    _scatter(axes, points, style)
    front = pareto_front([point for point in points if point.candidate == "searched"])
    axes.plot([p.size for p in front], [p.kl for p in front], color=style.other, lw=1.3, zorder=2, label="Pareto front")
    if min(point.kl for point in points) > 0:
        log_scale(axes)
    axes.set_xlabel(size_axis(runs))
    axes.set_ylabel(f"KL on {shortened(data_set)}, nats per token")
    axes.grid(lw=0.5)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    return figure


def _scatter(axes: Axes, points: Sequence[Point], style: Style) -> None:
    """Draw a marker and colour per method, hollow for uniform profiles and filled for searched ones."""
    by_method: dict[str, list[Point]] = {}
    for point in points:
        by_method.setdefault(point.method, []).append(point)
    shades = viridis(np.linspace(*style.shades, len(by_method)))
    for (method, members), marker, shade in zip(by_method.items(), cycle("osD^vPX*"), shades, strict=False):
        for candidate, fill in (("uniform", "none"), ("searched", shade)):
            chosen = [point for point in members if point.candidate == candidate]
            axes.scatter(
                [point.size for point in chosen],
                [point.kl for point in chosen],
                marker=marker,
                facecolor=fill,
                edgecolor=style.text if candidate == "searched" else shade,
                linewidths=0.7 if candidate == "searched" else 1.2,
                s=34,
                zorder=3,
                label=f"{shortened(method)}, {candidate}",
            )


def _have_same_model(runs: Iterable[Run]) -> bool:
    return len({run.model for run in runs}) == 1


def are_comparable(base: Run, other: Run) -> bool:
    """Whether two runs chose levels of the same compressor for the same units."""
    base_units, other_units = ([choice.unit for choice in run.choices] for run in (base, other))
    return bool(other.cells) and base_units == other_units and base.method == other.method


def profile_difference(base: Run, other: Run, style: Style) -> Figure | None:
    """How much more (positive) or less (negative) `other` keeps than `base` in each cell; None if not comparable."""
    if not are_comparable(base, other):
        return None
    base_cells, other_cells = base.cells, other.cells
    kinds, num_blocks = other.kinds, max(block for block, _ in other_cells) + 1
    change = {cell: other_cells[cell].kept - base_cells[cell].kept for cell in other_cells}
    largest = max(map(abs, change.values())) or 1.0
    figure, axes = new_axes(0.6 + 0.19 * num_blocks)
    for (block, kind), value in change.items():
        if abs(value) > 1e-9:
            colour = matplotlib.colormaps["PuOr"](0.5 + 0.45 * value / largest)
            fill_cell(axes, (kinds.index(kind), block), colour=colour, text=f"{value:+.3g}")
        else:
            axes.text(kinds.index(kind), block, "=", ha="center", va="center", fontsize=7, color=style.faint)
    block_grid(axes, kinds, num_blocks)
    return figure


def num_different(base: Run, other: Run) -> int:
    """The number of units whose levels differ between `base` and `other`."""
    labels = {choice.unit: choice.label for choice in base.choices}
    return sum(labels.get(choice.unit) != choice.label for choice in other.choices)
