"""How plots look, how they become SVG and PNG, and how numbers read in words."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

WIDTH = 4.3
"""Inches. Narrow, so that the text of a figure is still legible on a phone."""


@dataclass(frozen=True)
class Style:
    """Colours of a figure: for text, for lines of less weight, and for the two things it compares.

    `shades` are the ends of that part of viridis that stands out as small points on `background`.
    """

    name: str
    text: str
    faint: str
    accent: str
    other: str
    background: str
    shades: tuple[float, float]

    def settings(self) -> dict[str, object]:
        """As rcParams."""
        inked = ("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor")
        lines = ("axes.edgecolor", "xtick.color", "ytick.color", "grid.color")
        return {
            **dict.fromkeys(inked, self.text),
            **dict.fromkeys(lines, self.faint),
            "font.family": "sans-serif",
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.axisbelow": True,
            "figure.facecolor": self.background,
            "axes.facecolor": "none",
            "legend.frameon": False,
            "svg.hashsalt": "evopress",
            "figure.constrained_layout.use": True,
            "text.parse_math": False,
        }


LIGHT = Style(
    "light", text="#24292f", faint="#c9ced6", accent="#0b5cad", other="#c4560a", background="white", shades=(0.25, 0.7)
)
DARK = Style(
    "dark", text="#e4e7eb", faint="#4a525c", accent="#6cb6ff", other="#f0a35e", background="#1c2127", shades=(0.5, 0.95)
)

Draw = Callable[[Style], Figure | None]


def render(draw: Draw, style: Style, formats: Sequence[str]) -> list[bytes] | None:
    """The figure as "svg" (text as outlines, the same on every machine) or "png"; None where there is none."""
    with matplotlib.rc_context(style.settings()):  # type: ignore[arg-type]
        figure = draw(style)
        if figure is None:
            return None
        files = []
        for format in formats:
            out = BytesIO()
            figure.savefig(out, format=format, dpi=160, metadata={"Date": None} if format == "svg" else None)
            figure.set_layout_engine("none")  # the first time has laid it out
            files.append(out.getvalue())
    return files


def shortened(text: str, most: int = 20) -> str:
    """Text that leaves room for the plot beside it."""
    return text if len(text) <= most else text[: most - 1] + "…"


def duration(seconds: float) -> str:
    """95 → 1 min 35 s"""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def megabytes(size_bytes: float) -> str:
    """3412224 → 3.41"""
    size = size_bytes / 1e6
    return f"{size:,.2f}" if size < 100 else f"{size:,.0f}"


def new_axes(height: float) -> tuple[Figure, Axes]:
    """A figure that pyplot does not know of, so that it needs no closing."""
    figure = Figure(figsize=(WIDTH, height))
    return figure, figure.add_subplot()


def fill_cell(axes: Axes, place: tuple[int, int], colour: Sequence[float], text: str) -> None:
    """A coloured cell at (column, row) with a text that stands out from it."""
    column, row = place
    axes.add_patch(Rectangle((column - 0.48, row - 0.46), 0.96, 0.92, facecolor=colour, linewidth=0))
    ink = "black" if _luminance(colour) > 0.4 else "white"
    axes.text(column, row, text, ha="center", va="center", fontsize=7, color=ink)


def log_scale(axes: Axes) -> None:
    """Logarithmic y axis with plain numbers at 1, 2 and 5."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def as_grid(axes: Axes, kinds: Sequence[str], num_blocks: int) -> None:
    """Kinds of layers across the top, blocks down the side."""
    axes.set_xlim(-0.5, len(kinds) - 0.5)
    axes.set_ylim(num_blocks - 0.5, -0.5)
    labels = [shortened(kind) for kind in kinds]
    crowded = max(map(len, labels)) * len(labels) > 60
    axes.set_xticks(range(len(kinds)), labels, fontsize=8, rotation=60 if crowded else 0)
    axes.set_yticks(range(num_blocks), map(str, range(num_blocks)), fontsize=7)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_ylabel("block")


def viridis(shares: Iterable[float]) -> list[tuple[float, ...]]:
    """Colours at `shares` (0 to 1) of the colour map viridis, which is safe for the colour-blind."""
    return [matplotlib.colormaps["viridis"](share) for share in shares]


def _luminance(colour: Sequence[float]) -> float:
    red, green, blue = colour[:3]
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
