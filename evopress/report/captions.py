"""The plots in the report of a run, in order, with the words around them."""

from collections.abc import Iterator
from functools import partial
from math import isfinite

from evopress.report import figures, kl_figures
from evopress.report.level_groups import byte_parts, level_groups
from evopress.report.pages import Caption
from evopress.report.record import Run
from evopress.report.style import Draw
from evopress.report.wording import duration, megabytes


def run_plots(run: Run) -> Iterator[tuple[str, Caption, Draw]]:
    """(name of the file, caption, plot)."""
    yield (
        "fitness",
        Caption(
            "Search",
            "Every profile that the search tried. Minibatches differ, so compare points of the same step.",
            _fitness_alt(run),
        ),
        partial(figures.fitness_over_tokens, run),
    )
    histogram = ", ".join(f"{group.label}: {len(group.members)} units" for group in level_groups(run.choices))
    yield (
        "profile",
        Caption(
            "Profile",
            "The level of every unit. Brighter cells keep more.",
            f"Heat map of the levels, with a row per block and a column per kind of layer. {histogram}",
        ),
        partial(figures.profile_map, run),
    )
    yield (
        "levels",
        Caption(
            "Levels",
            "How many units received each level.",
            f"Bar chart of the number of units per level. {histogram}",
        ),
        partial(figures.level_histogram, run),
    )
    parts = "; ".join(f"{candidate} {part} {megabytes(size)} MB" for candidate, part, size in byte_parts(run))
    yield (
        "bytes",
        Caption("Where the bytes go", "Size of the file, with scales and zero points.", f"Stacked bars: {parts}"),
        partial(figures.bytes_by_part, run),
    )
    stages = ", ".join(f"{stage} {duration(seconds)}" for stage, seconds in run.seconds.items())
    yield (
        "seconds",
        Caption("Time", "Seconds per stage, summed over all attempts of a resumed run.", f"Bar chart: {stages}"),
        partial(figures.seconds_by_stage, run),
    )
    yield (
        "tuning",
        Caption(
            "Tuning",
            "KL on validation tokens at each check. The model with the lowest KL is kept.",
            f"Line chart of the KL while the model is tuned. {_tuning_alt(run)}",
        ),
        partial(kl_figures.kl_while_tuning, run),
    )
    names = ", ".join(kl_figures.position_curves(run))
    yield (
        "position",
        Caption(
            "KL by position",
            "Mean over the test windows. The thick lines are averages over neighbouring positions.",
            f"Line chart of the mean KL at each position of a test window: {names}.",
        ),
        partial(kl_figures.kl_by_position, run),
    )


def _tuning_alt(run: Run) -> str:
    """tuned: from 0.4 to 0.3 in 64 steps"""
    return "; ".join(
        f"{name}: from {checks[0][1]:.4g} to {min(kl for _, kl in checks):.4g} in {checks[-1][0]} steps"
        for name, checks in run.tuning.items()
    )


def _fitness_alt(run: Run) -> str:
    values = [value for batch in run.batches for value in batch.fitness if isfinite(value)]
    if not values:
        return ""
    return (
        f"Scatter plot of the fitness of {len(values)} profiles over the tokens spent, from {min(values):.4g} to "
        f"{max(values):.4g}, with a line for the best so far."
    )
