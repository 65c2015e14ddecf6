"""Runs a search without a model, on random fitness, to find out which questions it will ask."""

from dataclasses import replace
from random import Random

from evopress.data.windows import minibatch_shape
from evopress.job import Job
from evopress.planning.counting import EvaluatorCount
from evopress.planning.planned_run import PlannedRun
from evopress.search.base import Answer, Batch, Question
from evopress.search.early_stop import BestSoFar
from evopress.search.start_profiles import evenly_spaced_profile
from evopress.space.units import Profile
from evopress.targets import jobs_by_target
from evopress.tuning.limit import within


def dry_run_targets(run: PlannedRun, count: EvaluatorCount) -> list[tuple[Job, Profile]]:
    """Run the search dry for every target of the job, or for its one budget. Returns each job with its profile.

    The questions of all searches are added to `count`. A job that is returned has as much tuning as its effort leaves,
    if that is given in token equivalents.
    """
    profiles: list[Profile] = []
    jobs = jobs_by_target(run.job, run.space, lambda: profiles[-1:]) if run.job.targets else [run.job]
    searched = []
    for job in jobs:
        before = count.token_equivalents
        profiles.append(dry_run_search(job, run, count))
        searched.append((_with_limited_tuning(job, count.token_equivalents - before), profiles[-1]))
    return searched


def _with_limited_tuning(job: Job, spent: float) -> Job:
    """The job with the tuning that its effort leaves after a search that cost `spent` token equivalents."""
    left = job.limit.minus(token_equivalents=spent, seconds=0.0)
    calibration, validation = (
        (job.data.num_windows(split), job.tune.window(job.data.window)) for split in ("calibration", "validation")
    )
    return replace(job, tune=within(job.tune, left.token_equivalents, calibration=calibration, validation=validation))


def dry_run_search(job: Job, run: PlannedRun, count: EvaluatorCount) -> Profile:
    """Run the search of one budget and answer every question with random numbers. Returns the profile that it chose.

    The search is stopped when it has cost as many token equivalents as the effort of the job allows.
    """
    rng = Random(job.seed)
    search_run = job.search.run(run.space, job.budget, Random(job.seed))
    best, before = BestSoFar(run.space, job.budget), count.token_equivalents
    pool = job.data.num_windows("search"), job.data.window
    try:
        question = next(search_run)
        while not job.search_limit.is_reached(token_equivalents=count.token_equivalents - before):
            _ask(question, minibatch_shape(*pool, question.num_tokens, question.excerpt), count)
            answer = _random_answer(question, run, rng)
            best = best.after(question, answer)
            question = search_run.send(answer)
        return best.profile or evenly_spaced_profile(run.space, job.budget)
    except StopIteration as stop:
        return stop.value


def _ask(question: Question, shape: tuple[int, int], count: EvaluatorCount) -> None:
    if isinstance(question, Batch):
        count.measure(question.profiles, shape)
    elif question.kind == "switch_effects":
        assert question.profile is not None
        count.table(question.profile, shape, draws=int(question.arguments[0]))
    elif question.kind != "layer_error":
        count.passes(shape)


def _random_answer(question: Question, run: PlannedRun, rng: Random) -> Answer:
    """Random numbers in the shape of the answer."""
    space = run.space
    if isinstance(question, Batch):
        return [rng.random() for _ in question.profiles]
    if question.kind == "switch_effects":
        return [[rng.random(), rng.random()] for unit in space.units for _ in unit.levels]
    if question.kind == "layer_error":
        return [[rng.random() for _ in unit.levels] for unit in space.units]
    num_rows = run.model.num_blocks if question.kind == "outliers" else len(space)
    return [[rng.random() for _ in question.arguments] for _ in range(num_rows)]
