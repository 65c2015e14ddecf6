"""The light and the dark style of plots, and a function that renders a plot as SVG or PNG."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO

import matplotlib
from matplotlib.figure import Figure


@dataclass(frozen=True)
class Style:
    """Colours of a figure.

    `text` is for text, `faint` for axes and grids, `accent` and `other` for two curves that are compared. `shades` are
    the ends of the part of viridis that is visible on `background` even as small points.
    """

    name: str
    text: str
    faint: str
    accent: str
    other: str
    background: str
    shades: tuple[float, float]

    def settings(self) -> dict[str, object]:
        """The style as matplotlib rcParams."""
        text_colours = ("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor")
        line_colours = ("axes.edgecolor", "xtick.color", "ytick.color", "grid.color")
        return {
            **dict.fromkeys(text_colours, self.text),
            **dict.fromkeys(line_colours, self.faint),
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
"""Draws one plot in a style; returns None if there is nothing to show."""


def render(draw: Draw, style: Style, formats: Sequence[str]) -> list[bytes] | None:
    """The plot as one file per format ("svg" or "png"); None if there is nothing to show.

    SVG text becomes outlines, so that it looks the same on every machine.
    """
    with matplotlib.rc_context(style.settings()):  # type: ignore[arg-type]
        figure = draw(style)
        if figure is None:
            return None
        files = []
        for format in formats:
            out = BytesIO()
            figure.savefig(out, format=format, dpi=160, metadata={"Date": None} if format == "svg" else None)
            figure.set_layout_engine("none")  # the first savefig has computed the layout
            files.append(out.getvalue())
    return files
