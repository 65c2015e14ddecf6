"""The front of a run with several budgets: its points, and their plot."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from evopress.report.axes import log_scale, new_axes
from evopress.report.style import Style
from evopress.report.wording import shortened

AXIS_LABELS = {
    "bits": "bits per weight",
    "sparsity": "share of weights removed",
    "drop": "share of sub-blocks dropped",
    "size": "bytes",
    "memory": "bytes in memory",
    "latency": "seconds per step",
}
"""What the x axis shows, by the metric of the budget."""


@dataclass(frozen=True)
class FrontPoint:
    """One budget of the front, a row of `front.csv`.

    The KLs are in nats per token on the test tokens. `kl_additive` is None for drops, which have no layer errors.
    `token_equivalents` is the cost of the search.
    """

    target: float | str
    achieved: float
    size_bytes: int
    kl_searched: float
    kl_uniform: float
    kl_additive: float | None
    token_equivalents: float


def front_figure(points: Sequence[FrontPoint], metric: str, data_set: str, style: Style) -> Figure:
    """KL on `data_set` against the achieved budget, for the searched, the uniform and the additive profiles.

    The additive profiles minimise the sum of layer errors. A curve that lacks a point is left out.
    """
    figure, axes = new_axes(3.2)
    achieved = [point.achieved for point in points]
    curves = (
        ("additive errors", [point.kl_additive for point in points], style.other, "^:"),
        ("uniform", [point.kl_uniform for point in points], style.text, "s--"),
        ("searched", [point.kl_searched for point in points], style.accent, "o-"),
    )
    for label, kls, colour, line_style in curves:
        measured_kls = [kl for kl in kls if kl is not None]
        if len(measured_kls) == len(points):
            axes.plot(achieved, measured_kls, line_style, color=colour, markersize=5, lw=1.3, label=label)
    log_scale(axes)
    axes.set_xlabel(AXIS_LABELS[metric])
    axes.set_ylabel(f"KL on {shortened(data_set)}, nats per token")
    axes.grid(lw=0.5)
    axes.legend(fontsize=8)
    return figure
