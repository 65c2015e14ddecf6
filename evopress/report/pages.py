"""HTML pages made from templates, with embedded plots. A page loads no other files. Text from files is escaped."""

import base64
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from evopress.report.style import DARK, LIGHT, Draw, render
from evopress.report.wording import megabytes
from evopress.runtime.files import write_atomically

TEMPLATES = Environment(
    loader=PackageLoader("evopress", "assets/report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters["megabytes"] = megabytes


@dataclass(frozen=True)
class Caption:
    """The words around a plot; `alt` describes it to people who cannot see it."""

    title: str
    note: str
    alt: str


@dataclass(frozen=True)
class Plot:
    """A rendered plot: `light` and `dark` are data URIs of SVG files."""

    caption: Caption
    light: str
    dark: str


def render_plot(caption: Caption, draw: Draw, png: Path) -> Plot | None:
    """Render a plot in both styles, and write the light one to `png`.

    If there is nothing to show, delete the file and return None.
    """
    light, dark = render(draw, LIGHT, ("svg", "png")), render(draw, DARK, ("svg",))
    if light is None or dark is None:
        png.unlink(missing_ok=True)
        return None
    png.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(png, light[1])
    return Plot(caption, _data_uri(light[0]), _data_uri(dark[0]))


def _data_uri(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()


def write_page(path: Path, template: str, **content: object) -> None:
    """Fill `template` with `content` and write the page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, TEMPLATES.get_template(template).render(content))
