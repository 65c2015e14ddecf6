"""The page that compares several runs."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from evopress.report.comparison import (
    are_comparable,
    num_different,
    pareto_plot,
    pareto_points,
    profile_difference,
)
from evopress.report.pages import Caption, Plot, render_plot, write_page
from evopress.report.read_run import read_run
from evopress.report.record import CandidateScores, Run
from evopress.report.run_page import TaskScore, main_scores

MAX_DIFFERENCES = 12
"""A comparison draws at most this many differences between profiles."""


@dataclass(frozen=True)
class Row:
    """One run in the table. `link` leads to its report; `tasks` has the main scores of the searched model."""

    name: str
    link: str | None
    run: Run
    searched: CandidateScores | None
    uniform: CandidateScores | None
    tasks: Mapping[str, TaskScore]


def write_comparison(folders: Sequence[Path], path: Path) -> Path:
    """Write a page that compares several runs, and its plots as PNG files in a folder next to it. Returns `path`."""
    runs = [read_run(folder) for folder in folders]
    names = _short_names(runs)
    rows = [_row(name, run, path) for name, run in zip(names, runs, strict=True)]
    data_sets = list(dict.fromkeys(name for run in runs for name in run.data_sets))
    plots_folder = path.with_name(f"{path.stem}-plots")
    write_page(
        path,
        "comparison.html.j2",
        title=f"Comparison of {len(runs)} runs",
        rows=rows,
        data_sets=data_sets,
        tasks=list(dict.fromkeys(task for row in rows for task in row.tasks)),
        plots=_pareto_plots(runs, data_sets, plots_folder),
        differences=_difference_plots(runs, names, plots_folder),
        names=names,
        settings=differing_settings(runs),
        messages=[f"{name}: {warning}" for name, run in zip(names, runs, strict=True) for warning in run.warnings],
    )
    return path


def _pareto_plots(runs: Sequence[Run], data_sets: Sequence[str], folder: Path) -> list[Plot]:
    plots = []
    for number, name in enumerate(data_sets):
        points = [
            f"{point.method} {point.candidate} at {point.size:.4g}: {point.kl:.4g}"
            for point in pareto_points(runs, name)
        ]
        caption = Caption(
            f"KL on {name} against size",
            "Lower left is better. Hollow points are uniform profiles, filled points are searched ones.",
            f"Scatter plot of KL on {name} against size. {'; '.join(points)}",
        )
        plots.append(render_plot(caption, partial(pareto_plot, runs, name), folder / f"pareto-{number}.png"))
    return [plot for plot in plots if plot]


def _difference_plots(runs: Sequence[Run], names: Sequence[str], folder: Path) -> list[Plot]:
    plots = []
    for base, other in comparable_pairs(runs)[:MAX_DIFFERENCES]:
        caption = Caption(
            f"{names[other]} − {names[base]}",
            "How much more (positive, purple) or less (negative, orange) each unit keeps.",
            f"Heat map of the difference between the profiles of {names[other]} and {names[base]}. "
            f"{num_different(runs[base], runs[other])} units differ.",
        )
        draw = partial(profile_difference, runs[base], runs[other])
        plots.append(render_plot(caption, draw, folder / f"difference-{other}.png"))
    return [plot for plot in plots if plot]


def comparable_pairs(runs: Sequence[Run]) -> list[tuple[int, int]]:
    """Pairs (base, other) of indices into `runs`. Each run is paired with the first comparable run before it."""
    pairs = []
    for number, run in enumerate(runs):
        bases = [base for base in range(number) if are_comparable(runs[base], run)]
        pairs += [(bases[0], number)] if bases else []
    return pairs


def differing_settings(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """(key, its value in each run) for the settings that are not the same in all runs."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    rows = [(key, [run.settings.get(key, "–") for run in runs]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _row(name: str, run: Run, page: Path) -> Row:
    searched, uniform = run.candidates.get("searched"), run.candidates.get("uniform")
    tasks = main_scores(searched) if searched else {}
    return Row(name, _link(run.folder, page), run, searched, uniform, tasks)


def _link(folder: Path, page: Path) -> str | None:
    """The address of the run's report relative to `page`, if there is a report."""
    report = folder.resolve() / "report.html"
    return os.path.relpath(report, page.resolve().parent).replace(os.sep, "/") if report.is_file() else None


def _short_names(runs: Sequence[Run]) -> list[str]:
    """A short name for each run: the method and budget, the model if models differ, and more until all names differ."""
    forms = ("{0.model}", "{0.method} {0.budget}", "{0.search}", "seed {0.seed}", "{0.name}", "{0.folder}")
    parts = [[form.format(run) for run in runs] for form in forms]
    chosen: list[list[str]] = []
    for number, part in enumerate(parts):
        if len(set(part)) > 1 or number == 1:
            chosen.append(part)
        if number and len(set(zip(*chosen, strict=True))) == len(runs):
            break
    return [", ".join(filter(None, name)) for name in zip(*chosen, strict=True)]
