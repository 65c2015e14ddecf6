"""Estimates every stage of a job without loading its model.

::

    database    every block is calibrated on all calibration tokens, and all its groups are solved
    search      a dry run of the search for every target counts the work of the evaluator
    tune        every target learns the rounding of all blocks, and runs all of its steps, at five passes each, and all
                of its checks, as far as the job asks for it
    evaluate    the dense, the uniform, the searched and the tuned models run on every test set
    memory      the weights, and what each stage holds in addition (`memory.py`)
"""

from collections import Counter
from collections.abc import Iterator
from math import ceil

from evopress.compressors.drop import Drop
from evopress.evaluation.candidates import PROGRESS_WINDOWS, compared_profiles
from evopress.planning.counting import EvaluatorCount, parts_of
from evopress.planning.dry_run import dry_run_targets
from evopress.planning.estimate import MemoryItem, ResourceEstimate, StageEstimate
from evopress.planning.memory import (
    fewer_levels,
    memory_of_database,
    memory_of_evaluator,
    memory_of_every_stage,
    memory_of_tuning,
)
from evopress.planning.model_size import group_shapes
from evopress.planning.planned_run import PlannedRun
from evopress.planning.work import Operation, Work
from evopress.runtime import distributed
from evopress.space.units import Profile
from evopress.tuning.settings import STEP_COST, Tuning, resolving_equivalents, token_equivalents


def estimate_resources(run: PlannedRun) -> ResourceEstimate:
    """Estimate all stages of a job. Raises ValueError for settings that do not fit the model."""
    fewer_tokens = "lower data.calibration_tokens" if run.file_state_bytes else ""
    return ResourceEstimate(
        num_weights=sum(parameter.numel() for parameter in run.model.model.parameters()),
        num_units=len(run.space),
        database_bytes=run.level_bytes,
        states_bytes=run.file_state_bytes * distributed.world_size(),
        disk_remedies=tuple(filter(None, [fewer_levels(run), fewer_tokens])),
        stages=(_database_stage(run), *_search_and_evaluate_stages(run)),
    )


def _database_stage(run: PlannedRun) -> StageEstimate:
    work = Work()
    compress = run.job.compress
    if not isinstance(compress, Drop):
        for block, number in Counter(run.model.alike).items():
            for rows, cols in group_shapes(run.model, block):
                work[Operation("solve", rows=rows, cols=cols)] += number
        if compress.compresses_embeddings:
            matrix = Operation("solve", rows=(run.model.vocab_size,), cols=run.model.hidden_size)
            work[matrix] += len(run.model.embedding_and_head)
    if run.needs_hessians:
        window = run.job.data.window
        windows_per_part = max(1, run.job.evaluator.batch_tokens // window)
        parts = Counter(parts_of(run.calibration_tokens // window, windows_per_part))
        for part, number in parts.items():
            work.add_to_blocks(Operation("calibrate", part, window), run.model, times=number)
            if run.weighs_tokens:  # a forward pass, then each block again with its graph, and backwards
                work.add_to_blocks(Operation("block", part, window), run.model, times=3 * number)
                work[Operation("head", part, window)] += 2 * number
    if run.file_state_bytes:  # for each block, they are read once and written once
        work[Operation("states")] += 2 * run.model.num_blocks * run.file_state_bytes * distributed.world_size()
    return StageEstimate(
        name="database",
        tokens=(2.0 * run.needs_hessians + 3.0 * run.weighs_tokens) * run.calibration_tokens,
        work=work,
        memory=(*memory_of_every_stage(run), *memory_of_database(run)),
    )


def _search_and_evaluate_stages(run: PlannedRun) -> Iterator[StageEstimate]:
    """The stages `search` and `evaluate`, with `tune` between them if the job tunes."""
    search = EvaluatorCount(run)
    searched = dry_run_targets(run, search)
    yield _evaluator_stage("search", search)
    tuned = ["searched", *(["uniform"] if run.job.tune.compare_uniform else [])] if run.job.tunes else []
    if tuned:
        tuning = EvaluatorCount(run, before=search)
        for job, profile in searched:
            profiles = compared_profiles(run.space, profile, job.budget)
            for name in tuned:
                _count_tuning(tuning, profiles[name], job.tune)
        yield _evaluator_stage("tune", tuning, *memory_of_tuning(run))
    evaluation = EvaluatorCount(run, before=search)
    window = run.job.data.window
    for job, profile in searched:
        candidates = list(compared_profiles(run.space, profile, job.budget).values())
        for test_set in job.test_sets:
            for windows in parts_of(ceil(test_set.about_tokens() / window), PROGRESS_WINDOWS):
                evaluation.measure(candidates, (windows, window))
                for _ in tuned if job.tunes else []:
                    evaluation.measure([profile], (windows, window))
    yield _evaluator_stage("evaluate", evaluation)


def _count_rounding(count: EvaluatorCount, profile: Profile | None, settings: Tuning) -> None:
    """Learning the rounding of all blocks of one profile. A step is counted as three forward passes.

    A step takes several windows at once, but its time is close to that of one window after another.
    """
    data, before = count.run.job.data, count.token_equivalents
    window = settings.window(data.window)
    windows = min(data.num_windows("validation"), max(1, settings.validation_tokens // window))
    for _ in range(2):
        count.measure([profile], (windows, window))
    calibration, validation = ((data.num_windows(split), window) for split in ("calibration", "validation"))
    cost = resolving_equivalents(settings, calibration=calibration, validation=validation)
    passes = (cost - 3 * windows * window) / window
    count.work.add_to_blocks(Operation("block", 1, window), count.run.model, times=passes)
    count.token_equivalents = before + cost


def _count_tuning(count: EvaluatorCount, profile: Profile | None, settings: Tuning) -> None:
    """One tuning: first the rounding, then scales and norms, as far as the job asks for it."""
    if settings.resolve != "none":
        _count_rounding(count, profile, settings)
    if settings.tokens:
        _count_steps(count, profile, settings)


def _count_steps(count: EvaluatorCount, profile: Profile | None, settings: Tuning) -> None:
    """All steps and checks of one tuning. A step is counted as five forward passes: a backward pass costs two."""
    run, data = count.run, count.run.job.data
    window = settings.window(data.window)
    steps, checks = settings.num_steps(window), 1 + len(settings.check_steps(window))
    passes = STEP_COST * steps * settings.windows
    head_tokens = run.job.evaluator.head_tokens
    count.work.add_to_blocks(Operation("block", 1, window), run.model, times=passes)
    count.work[Operation("head", 1, head_tokens)] += passes * window / head_tokens
    windows = min(data.num_windows("validation"), max(1, settings.validation_tokens // window))
    before = count.token_equivalents
    for _ in range(checks):
        count.measure([profile], (windows, window))
    cost = token_equivalents(settings, steps, checks, windows=(data.num_windows("validation"), window))
    count.token_equivalents = before + cost


def _evaluator_stage(name: str, count: EvaluatorCount, *more: MemoryItem) -> StageEstimate:
    memory = (*memory_of_every_stage(count.run), *memory_of_evaluator(count), *more)
    return StageEstimate(name, count.token_equivalents, count.work, memory)
