"""The stages of a run in order: load, database, search, evaluate. Each is skipped when its result is there already."""

import json
import logging
import platform
import re
from contextlib import nullcontext, suppress
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, requires, version
from math import isfinite
from random import Random

from torch import Tensor

from evopress.compressors.base import Compressor
from evopress.compressors.drop import Drop
from evopress.data.splits import Splits, load_splits, load_test_windows
from evopress.database.build import build_database, expected_blocks
from evopress.database.cache import DecodedLevels
from evopress.database.manifest import fingerprint
from evopress.database.store import Database
from evopress.evaluation.candidates import Candidate, measure_candidates
from evopress.evaluation.context import EvaluationContext
from evopress.evaluation.evaluator import Evaluator, EvaluatorSettings
from evopress.evaluation.oracle import Oracle
from evopress.evaluation.results_table import as_table
from evopress.evaluation.test_sets import load_test_sets
from evopress.export import Searched, export, fixed_bytes
from evopress.export import check as check_export
from evopress.job import Job, name_of
from evopress.models.language_model import LanguageModel
from evopress.models.loading import load_model
from evopress.models.source import ModelSource
from evopress.pareto.front import trace_front
from evopress.planning.render import estimate_text
from evopress.planning.stages import estimate_resources
from evopress.report import write_report
from evopress.results import describe_run
from evopress.runtime import distributed
from evopress.runtime.checksums import read_json_if_intact, with_checksum
from evopress.runtime.clock import Clock
from evopress.runtime.files import lock_folder, write_atomically
from evopress.runtime.json_files import read_json, write_json
from evopress.runtime.metrics_file import JsonLines
from evopress.runtime.tracking import Tracker, Trackers
from evopress.search.driver import SearchTask, run_search
from evopress.search.log import SearchLog
from evopress.search.moves import evenly_spaced_profile
from evopress.search.watcher import SearchWatcher
from evopress.space.build import drop_space, layer_space
from evopress.space.profile_files import from_json, to_json, to_text
from evopress.space.units import Profile, Space
from evopress.targets import jobs_by_target

log = logging.getLogger(__name__)


def run(job: Job) -> Profile | None:
    """Run the job's stages; returns the searched profile, None when the search is not among them."""
    job.check()
    if "plan" in job.stages:
        log.info("the plan\n\n%s\n", estimate_text(estimate_resources(job), job))
    if job.stages == ("plan",):
        return None
    job.folder.mkdir(parents=True, exist_ok=True)
    with lock_folder(job.folder) if distributed.is_first() else nullcontext():
        return _tracked(job)


def _tracked(job: Job) -> Profile | None:
    tracker: Tracker = Trackers(JsonLines(), job.tracker) if distributed.is_first() else Tracker()
    name = f"{job.model.name} {name_of(job.compress)} {job.budget} {name_of(job.search)} seed {job.seed}"
    tracker.start(job.folder, name, job.config)
    finished = False
    try:
        profile = _run_stages(replace(job, tracker=tracker))
        finished = True
    finally:
        tracker.finish(0 if finished else 1)
    return profile


def _run_stages(job: Job) -> Profile | None:
    clock = Clock(job.folder / "seconds.json")
    with clock.stage("load"):
        cache = job.outputs / "cache"
        lm = (
            job.model
            if isinstance(job.model, LanguageModel)
            else distributed.first_then_others(partial(load_model, job.model, cache))
        )
        splits = distributed.from_first(partial(load_splits, job.data, lm.tokenizer, cache))
        for source in job.eval.datasets if "evaluate" in job.stages else ():  # an error before the search, not after
            distributed.from_first(partial(load_test_windows, source, job.data, lm.tokenizer, cache))
        limit = job.model.max_perplexity if isinstance(job.model, ModelSource) else None
        check_dense(lm, splits.validation[:4], job.evaluator, limit or lm.vocab_size)
    with clock.stage("database"):
        context = prepare(job, lm, splits)
    if "search" not in job.stages:
        return None
    if job.targets:
        trace_front(job, context, search_and_evaluate)
        return None
    return search_and_evaluate(job, context, clock)


def search_and_evaluate(job: Job, context: EvaluationContext, clock: Clock | None = None) -> Profile:
    """One budget, on a model and a database that are ready. The clock is that of the run directory."""
    clock = clock or Clock(job.folder / "seconds.json")
    with clock.stage("search"):
        profile = find_profile(job, context)
    if "evaluate" in job.stages:
        evaluate(job, context, profile, clock)
    return profile


def evaluate(job: Job, context: EvaluationContext, profile: Profile, clock: Clock) -> None:
    """Compare the profile with the dense and the uniform model, export it, and report on it."""
    path = job.folder / "results.json"
    measured = {**{name: asdict(getattr(job, name)) for name in ("data", "eval")}, "profile": list(profile)}
    measured = json.loads(json.dumps({**measured, "depends_on": context.identity}))
    done = {**measured, "export": json.loads(json.dumps(asdict(job.export)))}
    found = distributed.from_first(lambda: read_json_if_intact(path))
    if found.get("done") == done:
        log.info("the evaluation is done already: %s", path)
        return
    if found.get("measured") == measured:
        log.info("what was measured is there already: %s", path)
        candidates = {name: Candidate(**found[name]) for name in ("dense", "uniform", "searched")}
    else:
        with clock.stage("evaluate"):
            test_sets = load_test_sets(context, job.data, sources=job.eval.datasets, cache=job.outputs / "cache")
            candidates = measure_candidates(
                context,
                profile,
                budget=job.budget,
                metric=job.compress.metric,
                test_sets=test_sets,
                settings=job.eval,
            )
    if not distributed.is_first():
        return
    search_tokens = read_json(job.folder / "profile.json")["token_equivalents"]
    results = {
        **describe_run(job, context, profile, search_tokens=search_tokens),
        **{name: asdict(candidate) for name, candidate in candidates.items()},
    }
    results["measured"] = measured
    log.info("%s at %s\n\n%s\n", job.model.name, job.budget, as_table(candidates))
    write_json(path, with_checksum({**results, **clock.measurements}))
    if job.export.formats:
        with clock.stage("export"):
            searched = Searched(context.lm, context.space, profile, context.evaluator.weights)
            tokens, folder = context.splits.validation[:2], job.folder / "checkpoints"
            results["exports"] = export(job.export, searched, tokens, facts=results, folder=folder)
    write_json(path, with_checksum({**results, **clock.measurements}))
    for name, candidate in candidates.items():
        job.tracker.summary({f"{name}/{key}": value for key, value in candidate.figures().items()})
    job.tracker.summary({f"seconds/{stage}": spent for stage, spent in clock.seconds.items()})
    job.tracker.table("results", {name: candidate.figures() for name, candidate in candidates.items()})
    report = write_report(job.folder)
    job.tracker.images(sorted((job.folder / "plots").glob("*.png")))
    write_json(path, with_checksum({**results, **clock.measurements, "done": done}))
    job.tracker.files([job.folder / "profile.json", job.folder / "profile.txt", path, report])
    log.info("results and report.html are in %s", job.folder)


def check_dense(lm: LanguageModel, tokens: Tensor, settings: EvaluatorSettings, max_perplexity: float) -> None:
    """Log the dense perplexity. Raises ValueError when it is not below `max_perplexity`: something is then wrong."""
    (dense,) = Evaluator(lm, Space(()), None, settings).measure([None], tokens)
    log.info("dense perplexity %.2f on %d validation tokens", dense.perplexity, tokens.numel())
    if not (isfinite(dense.perplexity) and dense.perplexity < max_perplexity):
        raise ValueError(
            f"the dense model has perplexity {dense.perplexity:.4g} on data.source, which is not below "
            f"{max_perplexity:g} (by default that of a uniform guess): check model.path, model.dtype and data.source, "
            f"or raise model.max_perplexity for a model that is not trained"
        )


def prepare(job: Job, lm: LanguageModel, splits: Splits) -> EvaluationContext:
    """The space of the job, with its database complete."""
    check_export(job.export, job.compress, job.space, dtype=lm.dtype)
    identity = {"model": lm.identity, "dtype": str(lm.dtype), "search_tokens": splits.hashes["search"]}
    if isinstance(job.compress, Drop):
        space = drop_space(lm, job.compress, job.space)
        evaluator = Evaluator(lm, space, None, job.evaluator)
        return EvaluationContext(lm, splits, space, evaluator, None, identity | {"compress": asdict(job.compress)})
    compressor = job.compress.for_hidden_size(lm.hidden_size)
    space = layer_space(lm, compressor, job.space)
    if job.budget.metric == "size":
        space = replace(space.with_costs_in_bytes(), fixed_bytes=fixed_bytes(job.export, lm, space))
    _first_questions(job, space)
    database = open_database(job, compressor, lm, splits)
    settings = job.evaluator
    build_database(
        lm,
        compressor,
        splits.calibration,
        database,
        batch_tokens=settings.batch_tokens,
        states_gb=settings.states_gb,
    )
    weights = DecodedLevels(database, limit_bytes=int(settings.cache_gb * 1e9), dtype=lm.dtype, device=lm.device)
    evaluator = Evaluator(lm, space, weights, settings)
    return EvaluationContext(
        lm, splits, space, evaluator, database, identity | {"database": fingerprint(database.identity)}
    )


def _first_questions(job: Job, space: Space) -> None:
    """Run every search to its first question: what it cannot do is an error before hours of work, not after."""
    for part in jobs_by_target(job, space) if job.targets else [job]:
        evenly_spaced_profile(space, part.budget)
        next(part.search.run(space, part.budget, Random(part.seed)), None)


def open_database(job: Job, compressor: Compressor, lm: LanguageModel, splits: Splits) -> Database:
    name = name_of(compressor)
    identity = {
        "model": lm.identity,
        "dtype": str(lm.dtype),
        "calibration": splits.hashes["calibration"],
        "compressor": {"name": name, **asdict(compressor)},  # type: ignore[call-overload]
    }
    return Database.open(job.outputs / "databases" / job.model.name, name, identity, expected_blocks(lm, compressor))


def find_profile(job: Job, context: EvaluationContext) -> Profile:
    """Search, or read the profile that an earlier search of the same settings left in the run directory."""
    path = job.folder / "profile.json"
    header = {
        "search": {"name": type(job.search).__name__, **asdict(job.search)},  # type: ignore[call-overload]
        "budget": asdict(job.budget),
        "space": asdict(job.space),
        "evaluator": {"fitness": job.evaluator.fitness, "top_k": job.evaluator.top_k},
        "seed": job.seed,
        "depends_on": context.identity,
    }
    header = json.loads(json.dumps(header))
    if distributed.from_first(lambda: read_json_if_intact(path).get("settings") == header):
        log.info("the search is done already: %s", path)
        profile = from_json(context.space, path.read_text(encoding="utf-8"))
        if distributed.is_first():
            write_atomically(job.folder / "profile.txt", to_text(context.space, profile))
        return profile
    watcher = SearchWatcher(job.tracker)
    profile = run_search(
        SearchTask(job.search, context.space, job.budget, job.seed),
        Oracle(context, job.seed),
        log=SearchLog(job.folder / "search.jsonl", header),
        on_answer=watcher,
    )
    achieved = job.budget.achieved(context.space, profile)
    if not distributed.is_first():
        return profile
    log.info(
        "searched profile: %g %s after %d token equivalents", achieved, job.budget.metric, watcher.token_equivalents
    )
    facts = {
        "settings": header,
        "achieved": achieved,
        "token_equivalents": watcher.token_equivalents,
        "versions": versions(),
    }
    write_atomically(job.folder / "profile.txt", to_text(context.space, profile))
    write_json(path, with_checksum(json.loads(to_json(context.space, profile, **facts))))
    return profile


def versions() -> dict[str, str]:
    """Of Python, of this package and of every library it names, as far as they are installed."""
    named = [re.split(r"[^\w.-]", line)[0] for line in requires("evopress") or () if '"dev"' not in line]
    found = {"python": platform.python_version(), "evopress": version("evopress")}
    for name in named:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
