"""Many budgets from one database: a guided search is a short one that knows what that of the next larger budget found.

Each target becomes a run directory of its own below that of the job; beside them stand `front.csv`, `front.png` with
the searched, the uniform and the additive curve, `comparison.html`, and `archive.csv` with every profile that any of
the searches evaluated.
"""

import csv
import io
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial

from matplotlib.figure import Figure

from evopress.data import windows
from evopress.evaluation import measurements
from evopress.evaluation.context import EvaluationContext
from evopress.job import Job
from evopress.report import write_comparison
from evopress.report.style import LIGHT, Style, log_scale, new_axes, render, shortened
from evopress.runtime import distributed
from evopress.runtime.files import write_atomically
from evopress.runtime.json_files import read_json
from evopress.search.baselines.additive import knapsack
from evopress.search.driver import encode, evaluated
from evopress.search.moves import evenly_spaced_profile
from evopress.space.budget import Budget
from evopress.space.units import Profile, Space

log = logging.getLogger(__name__)

AXES = {
    "bits": "bits per weight",
    "sparsity": "share of weights removed",
    "drop": "share of sub-blocks dropped",
    "size": "bytes",
}


OTHERS = 1
"""Profiles of the neighbour's last comparison, besides its best, that a search tries at its own budget."""


@dataclass(frozen=True)
class Point:
    """One budget of the front. KL in nats per token on the test tokens; tokens are what the search cost."""

    target: float | str
    achieved: float
    size_bytes: int
    kl_searched: float
    kl_uniform: float
    kl_additive: float | None
    token_equivalents: float


def trace(job: Job, context: EvaluationContext, one: Callable[[Job, EvaluationContext], Profile]) -> None:
    """Search and evaluate every target of the job by `one`, from the largest model to the smallest."""
    found: list[tuple[Job, Profile]] = []
    for part in parts(job, context.space, lambda: _archived(*found[-1]) if found else []):
        if distributed.is_first():
            part.folder.mkdir(parents=True, exist_ok=True)
        log.info("target %d of %d: %s", len(found) + 1, len(set(job.targets)), part.budget)
        found.append((part, one(part, context)))
    if "evaluate" not in job.stages:
        return
    if distributed.is_first():
        write_atomically(job.folder / "archive.csv", archive_csv(context.space, [part for part, _ in found]))
    additive = [_additive_kl(context, part.budget) for part, _ in found]
    if distributed.is_first():
        name = windows.set_name(job.data.test_source or job.data.source)
        points = [_point(part, name, kl) for (part, _), kl in zip(found, additive, strict=True)]
        write_atomically(job.folder / "front.csv", as_csv(points))
        (png,) = render(partial(curves, points, job.budget.metric, name), LIGHT, ["png"]) or [b""]
        write_atomically(job.folder / "front.png", png)
        write_comparison([part.folder for part, _ in found], job.folder / "comparison.html")
        log.info("front.csv, front.png and comparison.html are in %s", job.folder)


def _archived(part: Job, profile: Profile) -> list[Profile]:
    """What a search found, and of its last comparison the next best."""
    last = distributed.from_first(lambda: evaluated(part.folder / "search.jsonl")[-1:])
    return list(dict.fromkeys([profile, *(other for batch in last for other, _ in batch)]))[: 1 + OTHERS]


def archive_csv(space: Space, parts: Sequence[Job]) -> str:
    """A row for every profile and minibatch of every search: target, minibatch, levels, cost, bytes and fitness."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("target", "batch", "levels", "cost", "size_bytes", "fitness"))
    for part in parts:
        for number, batch in enumerate(evaluated(part.folder / "search.jsonl")):
            for profile, fitness in batch:
                row = (encode(profile), space.cost(profile), space.size_bytes(profile), fitness)
                writer.writerow((part.budget.target, number, *row))
    return text.getvalue()


def parts(job: Job, space: Space, found: Callable[[], list[Profile]] = list) -> Iterator[Job]:
    """A job for every target, from the largest model to the smallest, each knowing what was `found` for the last one.

    Raises ValueError for a target that is out of reach.
    """
    budgets = [replace(job.budget, target=target) for target in dict.fromkeys(job.targets)]
    cost = {budget: space.cost(evenly_spaced_profile(space, budget)) for budget in budgets}
    for number, budget in enumerate(sorted(budgets, key=lambda budget: -cost[budget])):
        method = job.search.beside(found(), (number + 1) / len(budgets))
        folder = job.folder / f"{budget.target}{budget.metric}"
        yield replace(job, budget=budget, search=method, folder=folder, seed=job.seed + number, targets=())


def as_csv(points: list[Point]) -> str:
    """A header and a row per point."""
    text = io.StringIO()
    names = [field.name for field in fields(Point)]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([["" if (cell := getattr(point, name)) is None else cell for name in names] for point in points])
    return text.getvalue()


def curves(points: Sequence[Point], metric: str, name: str, style: Style) -> Figure:
    """KL on the data set `name` against what was achieved: searched, evenly spread, and by additive errors."""
    figure, axes = new_axes(3.2)
    targets = [point.achieved for point in points]
    lines = (
        ("additive errors", [point.kl_additive for point in points], style.other, "^:"),
        ("uniform", [point.kl_uniform for point in points], style.text, "s--"),
        ("searched", [point.kl_searched for point in points], style.accent, "o-"),
    )
    for label, kls, colour, form in lines:
        measured = [kl for kl in kls if kl is not None]
        if len(measured) == len(targets):
            axes.plot(targets, measured, form, color=colour, markersize=5, lw=1.3, label=label)
    log_scale(axes)
    axes.set_xlabel(AXES[metric])
    axes.set_ylabel(f"KL on {shortened(name)}, nats per token")
    axes.grid(lw=0.5)
    axes.legend(fontsize=8)
    return figure


def _point(part: Job, name: str, kl_additive: float | None) -> Point:
    results = read_json(part.folder / "results.json")
    return Point(
        target=part.budget.target,
        achieved=results["budget"]["achieved"],
        size_bytes=results["searched"]["size_bytes"],
        kl_searched=results["searched"]["kl"][name],
        kl_uniform=results["uniform"]["kl"][name],
        kl_additive=kl_additive,
        token_equivalents=results["tokens"]["search"],
    )


def _additive_kl(context: EvaluationContext, budget: Budget) -> float | None:
    """KL of what dynamic programming on layer errors picks; None for drops, which have none."""
    if context.database is None:
        return None
    profile = knapsack(
        context.space, budget.caps(context.space), measurements.layer_errors(context.space, context.database)
    )
    return context.evaluator.measure([profile], context.splits.test)[0].mean_kl
