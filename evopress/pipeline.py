"""Runs the stages of a job: load, database, search, tune, evaluate, export, report. Finished ones are not repeated."""

import logging
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

from evopress.evaluate_stage import evaluate_profile
from evopress.evaluation.context import EvaluationContext
from evopress.export import check_login
from evopress.job import Job, name_of
from evopress.pareto.front import trace_front
from evopress.planning.latency_table import ensure_table
from evopress.planning.planned_run import plan_run
from evopress.planning.render import plan_text
from evopress.planning.what_fits import what_fits_text
from evopress.preparation import load_inputs, prepare_context
from evopress.runtime import distributed
from evopress.runtime.clock import Clock
from evopress.runtime.files import lock_folder
from evopress.runtime.metrics_file import JsonLines
from evopress.runtime.tracking import Tracker, Trackers
from evopress.search_stage import search_profile
from evopress.space.latency import LatencyBudget
from evopress.space.memory import MemoryBudget
from evopress.space.units import Profile
from evopress.start_checks import check_start
from evopress.tune_limit import limit_tuning
from evopress.tune_stage import tune_models

log = logging.getLogger(__name__)


def run_job(job: Job) -> Profile | None:
    """Run the stages of a job and return the profile that the search found.

    The result is None if the job does not search, or if it has several targets. Raises ValueError if settings, files or
    the run directory do not fit together, and OSError if a file cannot be written.
    """
    job.check()
    latency = job.budget if isinstance(job.budget, LatencyBudget) else getattr(job.budget, "also", None)
    if "plan" in job.stages and latency is not None:
        distributed.first_then_others(partial(ensure_table, job, latency))
    run = distributed.first_then_others(partial(plan_run, job))
    if "plan" in job.stages and isinstance(job.budget, MemoryBudget):  # first, because the budget may be out of reach
        log.info("what fits\n\n%s\n", what_fits_text(run, job.budget))
    check_start(job, run.lm, run.space)
    if "plan" in job.stages:
        log.info("the plan\n\n%s\n", plan_text(run))
    if job.stages == ("plan",):
        return None
    if "evaluate" in job.stages:
        distributed.from_first(partial(check_login, job.export))
    job.folder.mkdir(parents=True, exist_ok=True)
    with lock_folder(job.folder) if distributed.is_first() else nullcontext():
        return _run_tracked(job)


def _run_tracked(job: Job) -> Profile | None:
    """Start the tracker, run the stages, and close the tracker."""
    tracker: Tracker = Trackers(JsonLines(), job.tracker) if distributed.is_first() else Tracker()
    name = f"{job.model.name} {name_of(job.compress)} {job.budget} {name_of(job.search)} seed {job.seed}"
    tracker.start(job.folder, name, job.config)
    exit_code = 1
    try:
        profile = _run_stages(replace(job, tracker=tracker))
        exit_code = 0
    finally:
        tracker.finish(exit_code)
    return profile


def _run_stages(job: Job) -> Profile | None:
    clock = Clock(job.folder / "seconds.json")
    with clock.stage("load"):
        lm, splits = load_inputs(job)
    with clock.stage("database"):
        context = prepare_context(job, lm, splits)
    if "search" not in job.stages:
        return None
    if job.targets:
        trace_front(job, context, _search_and_evaluate)
        return None
    return _search_and_evaluate(job, context, clock)


def _search_and_evaluate(job: Job, context: EvaluationContext, clock: Clock | None = None) -> Profile:
    """Run the stages that depend on the budget. Without a `clock`, open the clock of the job's folder."""
    clock = clock or Clock(job.folder / "seconds.json")
    with clock.stage("search"):
        profile = search_profile(job, context, clock)
    with clock.stage("tune") if job.tunes else nullcontext():
        job = limit_tuning(job, context, profile, clock)
        tuned = tune_models(job, context, profile, clock)
    if "evaluate" in job.stages:
        evaluate_profile(job, context, profile, tuned=tuned, clock=clock)
    return profile
