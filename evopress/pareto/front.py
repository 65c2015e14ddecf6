"""Searches several budgets on one database, from the largest model to the smallest.

Each target has a run directory inside that of the job. The best profiles for one budget take part in the search for
the next smaller one, which can therefore be shorter. The folder of the job also gets `front.csv`, `front.png` with the
searched, the uniform and the additive curve, `comparison.html`, and `archive.csv` with every profile that a search
evaluated.
"""

import csv
import io
import logging
from collections.abc import Callable, Sequence
from dataclasses import astuple, fields
from functools import partial

from evopress.evaluation.context import EvaluationContext
from evopress.evaluation.layer_errors import layer_errors
from evopress.job import Job
from evopress.pareto.archive import archive_csv
from evopress.report import write_comparison
from evopress.report.front import FrontPoint, front_figure
from evopress.report.style import LIGHT, render
from evopress.runtime import distributed
from evopress.runtime.files import write_atomically
from evopress.runtime.json_files import read_json
from evopress.search.knapsack import solve_knapsack
from evopress.search.log import read_evaluations
from evopress.space.budget import Budget
from evopress.space.units import Profile
from evopress.targets import jobs_by_target

log = logging.getLogger(__name__)

NUM_RUNNERS_UP = 1
"""How many profiles of its last comparison a search passes on to the next search, in addition to its result."""


def trace_front(
    job: Job, context: EvaluationContext, search_target: Callable[[Job, EvaluationContext], Profile]
) -> None:
    """Call `search_target` with the job of each target, the largest model first, and write the front at the end."""
    searched: list[tuple[Job, Profile]] = []
    for target_job in jobs_by_target(job, context.space, lambda: _best_profiles(*searched[-1]) if searched else []):
        if distributed.is_first():
            target_job.folder.mkdir(parents=True, exist_ok=True)
        log.info("target %d of %d: %s", len(searched) + 1, len(set(job.targets)), target_job.budget)
        searched.append((target_job, search_target(target_job, context)))
    if "evaluate" in job.stages:
        _write_front(job, context, [target_job for target_job, _ in searched])


def _best_profiles(job: Job, profile: Profile) -> list[Profile]:
    """The profile that a search returned, then the runners-up of its last comparison."""
    last_batch = distributed.from_first(lambda: read_evaluations(job.folder / "search.jsonl")[-1:])
    ranked = [other for batch in last_batch for other, _ in batch]
    return list(dict.fromkeys([profile, *ranked]))[: 1 + NUM_RUNNERS_UP]


def _write_front(job: Job, context: EvaluationContext, target_jobs: Sequence[Job]) -> None:
    if distributed.is_first():
        write_atomically(job.folder / "archive.csv", archive_csv(context.space, target_jobs))
    additive_kls = [_additive_kl(context, target_job.budget) for target_job in target_jobs]
    if not distributed.is_first():
        return
    data_set = job.test_sets[0].name
    points = [_point(target_job, data_set, kl) for target_job, kl in zip(target_jobs, additive_kls, strict=True)]
    write_atomically(job.folder / "front.csv", front_csv(points))
    (png,) = render(partial(front_figure, points, job.budget.metric, data_set), LIGHT, ["png"]) or [b""]
    write_atomically(job.folder / "front.png", png)
    write_comparison([target_job.folder for target_job in target_jobs], job.folder / "comparison.html")
    log.info("front.csv, front.png and comparison.html are in %s", job.folder)


def front_csv(points: Sequence[FrontPoint]) -> str:
    """A header, and a row for each point."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([field.name for field in fields(FrontPoint)])
    writer.writerows([["" if value is None else value for value in astuple(point)] for point in points])
    return text.getvalue()


def _point(job: Job, data_set: str, kl_additive: float | None) -> FrontPoint:
    results = read_json(job.folder / "results.json")
    return FrontPoint(
        target=job.budget.target,
        achieved=results["budget"]["achieved"],
        size_bytes=results["searched"]["size_bytes"],
        kl_searched=results["searched"]["kl"][data_set],
        kl_uniform=results["uniform"]["kl"][data_set],
        kl_additive=kl_additive,
        token_equivalents=results["tokens"]["search"],
    )


def _additive_kl(context: EvaluationContext, budget: Budget) -> float | None:
    """KL of the profile with the lowest sum of layer errors. None if blocks are dropped: drops have no layer errors."""
    if context.database is None:
        return None
    errors = layer_errors(context.space, context.database)
    profile = solve_knapsack(context.space, budget.caps(context.space), errors)
    return context.evaluator.measure([profile], context.splits.test)[0].mean_kl
