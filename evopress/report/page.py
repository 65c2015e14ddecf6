"""Writes the HTML: one page per run, and one that compares runs. Self-contained; what comes from files is escaped."""

import base64
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from evopress.report import contrasts, figures
from evopress.report.collect import overfit_gap, read_run
from evopress.report.record import Choice, Measured, Run
from evopress.report.style import DARK, LIGHT, Draw, duration, megabytes, render
from evopress.runtime.files import write_atomically

MAX_DIFFERENCES = 12
"""Differences of profiles that a comparison draws."""

_PAGES = Environment(
    loader=PackageLoader("evopress", "assets/report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


_PAGES.filters["megabytes"] = megabytes


@dataclass(frozen=True)
class Plot:
    """A drawn figure: `light` and `dark` are data URIs of SVG, `alt` says in words what is to be seen."""

    title: str
    note: str
    alt: str
    light: str
    dark: str


@dataclass(frozen=True)
class Row:
    """One run in a comparison; `link` leads to its own report, `tasks` are the scores of the searched model."""

    name: str
    link: str | None
    run: Run
    searched: Measured | None
    uniform: Measured | None
    tasks: Mapping[str, float | None]


def write_report(folder: Path) -> Path:
    """Write `report.html` and `plots/*.png` into the run directory; returns the page's path.

    Needs no model. Whatever is missing or damaged is named in the page. Raises NotADirectoryError where there is no
    such folder.
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder: give a run directory")
    run = read_run(folder)
    plots = {}
    for name, (title, note, alt, draw) in _run_figures(run).items():
        plot = _plot(title, note, alt, draw, folder / "plots" / f"{name}.png")
        if plot:
            plots[name] = plot
    page = _PAGES.get_template("run.html.j2").render(
        title=run.title,
        run=run,
        plots=plots,
        headline=headline(run),
        gap=overfit_gap(run),
        tasks=task_rows(run.candidates),
    )
    path = folder / "report.html"
    write_atomically(path, page)
    return path


def write_comparison(folders: Sequence[Path], path: Path) -> Path:
    """Write a page that sets several runs side by side, with PNGs in a folder beside it. Returns `path`."""
    plots_folder = path.with_name(f"{path.stem}-plots")
    runs = [read_run(folder) for folder in folders]
    names = _names(runs)
    rows = [_row(name, run, _link(run.folder, path)) for name, run in zip(names, runs, strict=True)]
    sets = list(dict.fromkeys(name for run in runs for name in run.data_sets))
    plots = [
        _plot(
            f"KL on {name} against size",
            "Lower left is better. Hollow: the uniform profile of the run; filled: the searched one.",
            _pareto_alt(runs, name),
            partial(contrasts.pareto, runs, name),
            plots_folder / f"pareto-{number}.png",
        )
        for number, name in enumerate(sets)
    ]
    differences = [
        _plot(
            f"{names[number]} − {names[base]}",
            "What each unit keeps more (positive, purple) or less (negative, orange).",
            f"Heat map of the difference between the profiles of {names[number]} and {names[base]}. "
            f"{_differing(runs[base].choices, runs[number].choices)} units differ.",
            partial(contrasts.profile_difference, runs[base], runs[number]),
            plots_folder / f"difference-{number}.png",
        )
        for base, number in comparable_pairs(runs)[:MAX_DIFFERENCES]
    ]
    page = _PAGES.get_template("comparison.html.j2").render(
        title=f"Comparison of {len(runs)} runs",
        rows=rows,
        sets=sets,
        tasks=list(dict.fromkeys(task for row in rows for task in row.tasks)),
        plots=[plot for plot in plots if plot],
        differences=[plot for plot in differences if plot],
        names=names,
        settings=differing_settings(runs),
        messages=[f"{name}: {warning}" for name, run in zip(names, runs, strict=True) for warning in run.warnings],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page)
    return path


def headline(run: Run) -> list[tuple[str, str, str]]:
    """(what, figure, remark) of the few numbers that matter most."""
    dense, uniform, searched = (run.candidates.get(name) for name in ("dense", "uniform", "searched"))
    facts = []
    if searched and dense:
        facts.append(("Size", f"{megabytes(searched.size_bytes)} MB", f"dense {megabytes(dense.size_bytes)} MB"))
    if run.achieved is not None:
        facts.append(("Budget", _amount(run, run.achieved), f"target {run.budget}"))
    for name, kl in list(searched.kl.items())[:1] if searched else []:
        before = uniform.kl.get(name) if uniform else None
        remark = f"uniform {before:.4g} ({kl / before - 1:+.0%})" if before else ""
        facts.append((f"KL on {name}", f"{kl:.4g}", remark))
    for name, perplexity in list(searched.perplexity.items())[:1] if searched else []:
        before = dense.perplexity.get(name) if dense else None
        facts.append((f"Perplexity on {name}", f"{perplexity:.4g}", f"dense {before:.4g}" if before else ""))
    if run.answers:
        spent = run.answers[-1].spent
        facts.append(("Tokens searched", f"{spent:,.0f}", f"{len(run.answers)} minibatches"))
    if run.seconds:
        facts.append(("Time", duration(sum(run.seconds.values())), "all stages"))
    return facts


def task_rows(candidates: Mapping[str, Measured]) -> list[tuple[str, list[float | None]]]:
    """(task and metric, its value per candidate in the order of `candidates`)."""
    keys = dict.fromkeys(
        (task, metric) for found in candidates.values() for task, scores in found.tasks.items() for metric in scores
    )
    return [
        (f"{task} {metric}", [found.tasks.get(task, {}).get(metric) for found in candidates.values()])
        for task, metric in keys
    ]


def comparable_pairs(runs: Sequence[Run]) -> list[tuple[int, int]]:
    """(base, other) as places in `runs`: every run with the first one before it that has the same units and method."""
    pairs = []
    for number, run in enumerate(runs):
        bases = [base for base in range(number) if contrasts.comparable(runs[base], run)]
        pairs += [(bases[0], number)] if bases else []
    return pairs


def differing_settings(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """(key, its value per run) of the settings that are not the same in all runs."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    rows = [(key, [run.settings.get(key, "–") for run in runs]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _row(name: str, run: Run, link: str | None) -> Row:
    searched, uniform = run.candidates.get("searched"), run.candidates.get("uniform")
    tasks = {task: values[0] for task, values in task_rows({"searched": searched})} if searched else {}
    return Row(name, link, run, searched, uniform, tasks)


def _run_figures(run: Run) -> dict[str, tuple[str, str, str, Draw]]:
    """Name of the file → (title, note, alt text, figure)."""
    fill = "Brighter cells keep more."
    return {
        "fitness": (
            "Search",
            "Every profile that was tried. Minibatches differ, so points of one step compare best with each other.",
            _fitness_alt(run),
            partial(figures.fitness_over_tokens, run),
        ),
        "profile": (
            "Profile",
            f"The level of every unit. {fill}",
            f"Heat map of the levels, blocks by kinds of layers. {_histogram_words(run)}",
            partial(figures.profile_map, run),
        ),
        "levels": (
            "Levels",
            "How many units received each level.",
            f"Bar chart of the number of units per level. {_histogram_words(run)}",
            partial(figures.level_histogram, run),
        ),
        "bytes": (
            "Where the bytes go",
            "Size of the file, scales and zero points included.",
            "Stacked bars: "
            + "; ".join(f"{row} {part} {megabytes(size)} MB" for row, part, size in figures.byte_parts(run)),
            partial(figures.bytes_by_part, run),
        ),
        "seconds": (
            "Time",
            "Seconds per stage, over all attempts of a resumed run.",
            "Bar chart: " + ", ".join(f"{stage} {duration(seconds)}" for stage, seconds in run.seconds.items()),
            partial(figures.seconds_by_stage, run),
        ),
        "position": (
            "KL by position",
            "Mean over the test windows; the thick lines are means over neighbouring positions.",
            "Line chart of the mean KL at each position of a test window, uniform and searched.",
            partial(figures.kl_by_position, run),
        ),
    }


def _plot(title: str, note: str, alt: str, draw: Draw, png: Path) -> Plot | None:
    """Draw for both colour schemes, and to the file `png`; None where there is nothing to draw."""
    light, dark = render(draw, LIGHT, ("svg", "png")), render(draw, DARK, ("svg",))
    if light is None or dark is None:
        png.unlink(missing_ok=True)
        return None
    png.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(png, light[1])
    return Plot(title, note, alt, _data_uri(light[0]), _data_uri(dark[0]))


def _data_uri(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()


def _amount(run: Run, value: float) -> str:
    if run.metric == "size":
        return f"{megabytes(value)} MB"
    return f"{value:.4g} bits" if run.metric == "bits" else f"{100 * value:.4g} %"


def _fitness_alt(run: Run) -> str:
    values = [value for answer in run.answers for value in answer.values if isfinite(value)]
    if not values:
        return ""
    return (
        f"Scatter of the fitness of {len(values)} profiles over the tokens spent, from {min(values):.4g} to "
        f"{max(values):.4g}, with a line for the best so far."
    )


def _histogram_words(run: Run) -> str:
    return ", ".join(f"{group.label}: {len(group.members)} units" for group in figures.level_groups(run.choices))


def _pareto_alt(runs: Sequence[Run], name: str) -> str:
    points = contrasts.pareto_points(runs, name)
    words = [f"{point.method} {point.candidate} at {point.size:.4g}: {point.kl:.4g}" for point in points]
    return f"Scatter of KL on {name} over size. " + "; ".join(words)


def _differing(base: Iterable[Choice], other: Iterable[Choice]) -> int:
    levels = {choice.unit: choice.label for choice in base}
    return sum(levels.get(choice.unit) != choice.label for choice in other)


def _names(runs: Sequence[Run]) -> list[str]:
    """What tells the runs apart, as short as it can be."""
    forms = ("{0.model}", "{0.method} {0.budget}", "{0.search}", "seed {0.seed}", "{0.name}", "{0.folder}")
    parts = [[form.format(run) for run in runs] for form in forms]
    chosen: list[list[str]] = []
    for number, part in enumerate(parts):
        if len(set(part)) > 1 or number == 1:
            chosen.append(part)
        if number and len(set(zip(*chosen, strict=True))) == len(runs):
            break
    return [", ".join(filter(None, name)) for name in zip(*chosen, strict=True)]


def _link(folder: Path, page: Path) -> str | None:
    """Relative address of the run's own report, if there is one."""
    report = folder.resolve() / "report.html"
    return os.path.relpath(report, page.resolve().parent).replace(os.sep, "/") if report.is_file() else None
