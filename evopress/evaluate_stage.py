"""The stage `evaluate`. It measures the models, exports one of them, and writes the results and the report."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial

from evopress.data.windows import Windows
from evopress.database.manifest import fingerprint
from evopress.engine_stage import measure_in_engine
from evopress.evaluation.answers import answers_identity, compare_answers, prompts_of
from evopress.evaluation.candidates import Candidate, compared_profiles, measure_candidates
from evopress.evaluation.context import EvaluationContext
from evopress.evaluation.data_sets import load_test_sets
from evopress.evaluation.results_table import as_table
from evopress.evaluation.task_runs import measure_tasks
from evopress.export import SearchedModel, upload_checkpoints, write_checkpoints
from evopress.job import Job
from evopress.report import write_report
from evopress.results import ResultsFile, describe_run, open_results
from evopress.runtime import distributed
from evopress.runtime.clock import Clock
from evopress.runtime.tracking import Tracker
from evopress.search.start_profiles import evenly_spaced_profile
from evopress.space.units import Profile
from evopress.tune_stage import TunedModel, final_model

log = logging.getLogger(__name__)


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
    extents = {name: model.extent for name, model in tuned.items()}
    file = open_results(job, context, profiles, test_sets=test_sets, extents=extents)
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
    final = final_model(tuned, context)
    with clock.stage("evaluate"):
        answers = _answers(job, context, final, profile=profile, file=file)
    if not distributed.is_first():
        return
    scores = {name: asdict(candidate) for name, candidate in candidates.items()}
    results = {**describe_run(job, context, profile), **scores, **answers, "measured": file.measured}
    if tuned:
        results["tuning"] = {name: model.facts(job, context) for name, model in tuned.items()}
    log.info("%s at %s\n\n%s\n", job.model.name, job.budget, as_table(candidates))
    file.write({**results, **clock.measurements})
    if job.export.formats:
        with clock.stage("export"):
            results["exports"] = _export(job, final[1], profile, facts=results)
    if job.eval.engine:
        file.write({**results, **clock.measurements})
        with clock.stage("engine"):
            uniform = evenly_spaced_profile(context.space, job.budget)
            results["engine"] = measure_in_engine(job, context, uniform, exported=final[0])
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


def _answers(
    job: Job, context: EvaluationContext, final: tuple[str, EvaluationContext], *, profile: Profile, file: ResultsFile
) -> dict[str, object]:
    """The entry `answers` of the results: the answers to `eval.prompts`. Empty without prompts. Collective."""
    prompts = prompts_of(job.eval, context.lm)
    if not prompts:
        return {}
    name, compressed = final
    identity = fingerprint(answers_identity(prompts, context.lm))
    recorded = file.recorded_answers(identity)
    if recorded:
        return {"answers": recorded}
    compare = partial(compare_answers, context, compressed, profile=profile, prompts=prompts)
    return {"answers": {"identity": identity, "compressed": name, "prompts": distributed.from_first(compare)}}


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
