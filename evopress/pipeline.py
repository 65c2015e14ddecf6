"""Runs the stages of a job: load, database, search, tune, evaluate, export, report. Finished ones are not repeated."""

import logging
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial

from evopress.data.windows import Windows
from evopress.evaluation.candidates import Candidate, compared_profiles, measure_candidates
from evopress.evaluation.context import EvaluationContext
from evopress.evaluation.data_sets import load_test_sets
from evopress.evaluation.oracle import Oracle
from evopress.evaluation.results_table import as_table
from evopress.evaluation.task_runs import measure_tasks
from evopress.export import SearchedModel, check_login, upload_checkpoints, write_checkpoints
from evopress.identity import search_identity
from evopress.job import Job, name_of
from evopress.pareto.front import trace_front
from evopress.planning.planned_run import plan_run
from evopress.planning.render import plan_text
from evopress.preparation import load_inputs, prepare_context
from evopress.report import write_report
from evopress.results import describe_run, open_results
from evopress.runtime import distributed
from evopress.runtime.clock import Clock
from evopress.runtime.files import lock_folder
from evopress.runtime.metrics_file import JsonLines
from evopress.runtime.tracking import Tracker, Trackers
from evopress.saved_profile import read_saved_profile, save_profile
from evopress.search.driver import SearchTask, run_search
from evopress.search.log import SearchLog
from evopress.search.watcher import SearchWatcher
from evopress.space.units import Profile
from evopress.start_checks import check_start
from evopress.tune_stage import TunedModel, tune_models

log = logging.getLogger(__name__)


def run_job(job: Job) -> Profile | None:
    """Run the stages of a job and return the profile that the search found.

    The result is None if the job does not search, or if it has several targets. Raises ValueError if settings, files or
    the run directory do not fit together, and OSError if a file cannot be written.
    """
    job.check()
    run = distributed.first_then_others(partial(plan_run, job))
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
        profile = search_profile(job, context)
    with clock.stage("tune") if job.tunes else nullcontext():
        tuned = tune_models(job, context, profile)
    if "evaluate" in job.stages:
        evaluate_profile(job, context, profile, tuned=tuned, clock=clock)
    return profile


def search_profile(job: Job, context: EvaluationContext) -> Profile:
    """Search, unless the run directory already contains the result of a search with the same settings."""
    settings = search_identity(job, context)
    profile = read_saved_profile(job.folder, context.space, settings)
    if profile is not None:
        return profile
    watcher = SearchWatcher(job.tracker)
    profile = run_search(
        SearchTask(job.search, context.space, job.budget, job.seed),
        Oracle(context, job.seed),
        log=SearchLog(job.folder / "search.jsonl", settings),
        on_answer=watcher,
    )
    achieved, token_equivalents = job.budget.achieved(context.space, profile), watcher.token_equivalents
    if distributed.is_first():
        log.info("searched profile: %g %s after %d token equivalents", achieved, job.budget.metric, token_equivalents)
        save_profile(
            job.folder,
            context.space,
            profile,
            settings=settings,
            achieved=achieved,
            token_equivalents=token_equivalents,
        )
    return profile


def evaluate_profile(
    job: Job, context: EvaluationContext, profile: Profile, *, tuned: Mapping[str, TunedModel], clock: Clock
) -> None:
    """Measure the dense, uniform, searched and tuned models, export the searched or tuned one, and write the report."""
    profiles = compared_profiles(context.space, profile, job.budget)
    test_sets = load_test_sets(
        context.splits,
        job.data,
        test_sets=job.test_sets,
        tokenizer=context.lm.tokenizer,
        cache=job.outputs / "cache",
    )
    file = open_results(job, context, profiles, test_sets=test_sets)
    if file.is_done:
        log.info("the evaluation is already done: %s", file.path)
        return
    candidates = file.recorded_candidates()
    if candidates:
        log.info("the scores are already measured: %s", file.path)
    else:
        with clock.stage("evaluate"):
            measure = partial(_measure, job, test_sets=test_sets, tasks=file.measured["tasks"])
            candidates = measure(context, profiles)
            for name, model in tuned.items():
                candidates |= measure(model.context, {name: model.profile}) if model.context else {}
    if not distributed.is_first():
        return
    scores = {name: asdict(candidate) for name, candidate in candidates.items()}
    results = {**describe_run(job, context, profile), **scores, "measured": file.measured}
    if tuned:
        results["tuning"] = {name: model.facts(job, context) for name, model in tuned.items()}
    log.info("%s at %s\n\n%s\n", job.model.name, job.budget, as_table(candidates))
    file.write({**results, **clock.measurements})
    if job.export.formats:
        with clock.stage("export"):
            exported = (tuned["tuned"].context if tuned else None) or context
            results["exports"] = _export(job, exported, profile, facts=results)
    file.write({**results, **clock.measurements})
    _track_results(job.tracker, candidates, clock.seconds)
    report = write_report(job.folder)
    job.tracker.images(sorted((job.folder / "plots").glob("*.png")))
    if job.export.push_to_hub:  # last, because it needs a network
        results["uploads"] = upload_checkpoints(job.export, job.folder / "checkpoints")
    file.write({**results, **clock.measurements, "done": file.done})
    job.tracker.files([job.folder / "profile.json", job.folder / "profile.txt", file.path, report])
    log.info("results and report.html are in %s", job.folder)


def _measure(
    job: Job,
    context: EvaluationContext,
    profiles: Mapping[str, Profile | None],
    *,
    test_sets: Mapping[str, Windows],
    tasks: Mapping[str, Mapping[str, object]],
) -> dict[str, Candidate]:
    """Measure every candidate. `tasks` maps the name of each task to its identity."""
    candidates = measure_candidates(context, profiles, metric=job.compress.metric, test_sets=test_sets)
    if not job.eval.tasks:
        return candidates
    folder = job.folder / "tasks"
    scores = measure_tasks(context, profiles, settings=job.eval, identities=tasks, folder=folder)
    return {name: replace(candidate, tasks=scores[name]) for name, candidate in candidates.items()}


def _export(
    job: Job, context: EvaluationContext, profile: Profile, *, facts: Mapping[str, object]
) -> dict[str, dict[str, object]]:
    searched = SearchedModel(context.lm, context.space, profile, context.evaluator.weights)
    tokens = context.splits.validation[:2]
    return write_checkpoints(job.export, searched, tokens=tokens, facts=facts, folder=job.folder / "checkpoints")


def _track_results(tracker: Tracker, candidates: Mapping[str, Candidate], seconds: Mapping[str, float]) -> None:
    for name, candidate in candidates.items():
        tracker.summary({f"{name}/{key}": value for key, value in candidate.metrics().items()})
    tracker.summary({f"seconds/{stage}": spent for stage, spent in seconds.items()})
    tracker.table("results", {name: candidate.metrics() for name, candidate in candidates.items()})
