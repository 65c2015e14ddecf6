"""Axes that several plots share: their size, scales, grids and colours."""

from collections.abc import Iterable, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from evopress.report.wording import shortened

WIDTH = 4.3
"""Width of a figure in inches: narrow, so that its text stays legible on a phone."""


def new_axes(height: float) -> tuple[Figure, Axes]:
    """A figure created without pyplot, so that it need not be closed. `height` is in inches."""
    figure = Figure(figsize=(WIDTH, height))
    return figure, figure.add_subplot()


def log_scale(axes: Axes) -> None:
    """Set a logarithmic y axis with plain numbers at 1, 2 and 5."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def height_of_labels(kinds: Sequence[str]) -> float:
    """The inches by which the labels of a grid are taller than a short name such as gate_proj."""
    return 0.06 * max(0, max(len(shortened(kind)) for kind in kinds) - len("gate_proj"))


def block_grid(axes: Axes, kinds: Sequence[str], num_blocks: int) -> None:
    """Label the axes of a grid with one column per kind of layer and one row per block."""
    axes.set_xlim(-0.5, len(kinds) - 0.5)
    axes.set_ylim(num_blocks - 0.5, -0.5)
    labels = [shortened(kind) for kind in kinds]
    is_crowded = max(map(len, labels)) * len(labels) > 60
    axes.set_xticks(range(len(kinds)), labels, fontsize=8, rotation=60 if is_crowded else 0)
    axes.set_yticks(range(num_blocks), map(str, range(num_blocks)), fontsize=7)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_ylabel("block")


def fill_cell(axes: Axes, cell: tuple[int, int], *, colour: Sequence[float], text: str) -> None:
    """Colour the cell at (column, row) and write `text` on it in black or white, whichever is legible."""
    column, row = cell
    axes.add_patch(Rectangle((column - 0.48, row - 0.46), 0.96, 0.92, facecolor=colour, linewidth=0))
    ink = "black" if _luminance(colour) > 0.4 else "white"
    axes.text(column, row, text, ha="center", va="center", fontsize=7, color=ink)


def viridis(shares: Iterable[float]) -> list[tuple[float, ...]]:
    """Colours at `shares` (0 to 1) of viridis, which colour-blind readers can tell apart."""
    return [matplotlib.colormaps["viridis"](share) for share in shares]


def _luminance(colour: Sequence[float]) -> float:
    red, green, blue = colour[:3]
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
