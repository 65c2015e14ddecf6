"""The plots that set runs side by side."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle
from math import isfinite, nan

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from evopress.report.record import Run
from evopress.report.style import Style, as_grid, fill_cell, log_scale, new_axes, shortened, viridis


def pareto(runs: Sequence[Run], data_set: str, style: Style) -> Figure | None:
    """KL against bytes, or against bits per weight where the models differ; a line joins what no other run beats."""
    points = pareto_points(runs, data_set)
    if not points:
        return None
    figure, axes = new_axes(3.4)
    markers = cycle("osD^vPX*")
    by_method: dict[str, list[Point]] = {}
    for point in points:
        by_method.setdefault(point.method, []).append(point)
    shades = viridis(np.linspace(*style.shades, len(by_method)))
    for (method, members), marker, shade in zip(by_method.items(), markers, shades, strict=False):
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
    best = front([point for point in points if point.candidate == "searched"])
    axes.plot([p.size for p in best], [p.kl for p in best], color=style.other, lw=1.3, zorder=2, label="Pareto front")
    if min(point.kl for point in points) > 0:
        log_scale(axes)
    axes.set_xlabel("MB" if _same_model(runs) else "bits per weight, scales included")
    axes.set_ylabel(f"KL on {shortened(data_set)}, nats per token")
    axes.grid(lw=0.5)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    return figure


def profile_difference(base: Run, run: Run, style: Style) -> Figure | None:
    """What `run` keeps more (positive) or less than `base`, cell by cell; None where they cannot be compared."""
    if not comparable(base, run):
        return None
    ours, theirs = run.cells, base.cells
    kinds, num_blocks = run.kinds, max(block for block, _ in ours) + 1
    change = {cell: ours[cell].kept - theirs[cell].kept for cell in ours}
    most = max(map(abs, change.values())) or 1.0
    figure, axes = new_axes(0.6 + 0.19 * num_blocks)
    for (block, kind), value in change.items():
        if abs(value) > 1e-9:
            colour = matplotlib.colormaps["PuOr"](0.5 + 0.45 * value / most)
            fill_cell(axes, (kinds.index(kind), block), colour, f"{value:+.3g}")
        else:
            axes.text(kinds.index(kind), block, "=", ha="center", va="center", fontsize=7, color=style.faint)
    as_grid(axes, kinds, num_blocks)
    return figure


def comparable(base: Run, run: Run) -> bool:
    """Whether both chose levels of the same kind for the same units."""
    units = [[choice.unit for choice in each.choices] for each in (base, run)]
    return bool(run.cells) and units[0] == units[1] and base.method == run.method


@dataclass(frozen=True)
class Point:
    """One model in the plane of size (MB, or bits per weight) and KL."""

    method: str
    candidate: str
    size: float
    kl: float


def pareto_points(runs: Sequence[Run], data_set: str) -> list[Point]:
    in_bytes = _same_model(runs)
    points = []
    for run in runs:
        for name in ("uniform", "searched"):
            found = run.candidates.get(name)
            kl = found.kl.get(data_set, nan) if found else nan
            if found and isfinite(kl):
                size = found.size_bytes / 1e6 if in_bytes else found.bits_per_weight_with_scales
                points.append(Point(run.method if in_bytes else f"{run.model} {run.method}", name, size, kl))
    return points


def front(points: Iterable[Point]) -> list[Point]:
    """Those that no other point beats: as small and as good, and better in one of the two. By rising size."""
    best: list[Point] = []
    for point in sorted(points, key=lambda point: (point.size, point.kl)):
        if not best or point.kl < best[-1].kl:
            best.append(point)
    return best


def _same_model(runs: Iterable[Run]) -> bool:
    return len({run.model for run in runs}) == 1
