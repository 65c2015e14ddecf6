"""What a process holds in memory during each stage, and the settings that make it smaller."""

from evopress.compressors.sweep import MAX_ELEMENTS
from evopress.evaluation.switch_gradients import HEAD_TOKENS
from evopress.models.source import ModelSource
from evopress.planning.counting import EvaluatorCount
from evopress.planning.estimate import MemoryItem
from evopress.planning.model_size import group_shapes, resident_weights
from evopress.planning.planned_run import PlannedRun

LIBRARIES_BYTES = 500_000_000
"""What the libraries take in the memory of a process, measured with torch 2.13 for the CPU."""

LEVEL_SETTINGS = ("bits", "types", "num_levels")
"""Settings of compressors that say how many levels there are."""


def memory_of_every_stage(run: PlannedRun) -> tuple[MemoryItem, ...]:
    """The libraries, the model, and the activations of a block."""
    source = run.job.model
    offload = isinstance(source, ModelSource) and source.offload
    weights = resident_weights(run.model, offload=offload) * run.dtype.itemsize
    widest = max(max(sum(rows), cols) for rows, cols in group_shapes(run.model))
    window, batch_tokens = run.job.data.window, run.job.evaluator.batch_tokens
    activations = 4 * max(window, batch_tokens) * widest * run.dtype.itemsize
    smaller_batch = "lower evaluator.batch_tokens" if batch_tokens > window else "lower data.window"
    return (
        MemoryItem("the libraries", LIBRARIES_BYTES),
        MemoryItem("the model's weights", weights, _smaller_model(run)),
        MemoryItem("a batch in a block", activations, smaller_batch),
    )


def _smaller_model(run: PlannedRun) -> str:
    """Only the settings that are not in use. A model that is in memory already has none."""
    source = run.job.model
    if not isinstance(source, ModelSource):
        return ""
    settings = ["model.offload=true"] * (not source.offload) + ["model.dtype=bfloat16"] * (run.dtype.itemsize > 2)
    return f"set {' or '.join(settings)}" if settings else ""


def memory_of_database(run: PlannedRun) -> tuple[MemoryItem, ...]:
    """What the compressor needs in addition."""
    if not run.num_levels:
        return ()
    shapes = [(sum(rows), cols) for rows, cols in group_shapes(run.model)]
    hessians = 8 * sum(cols**2 for _, cols in shapes)  # those of the tokens at hand, and their running mean
    factors = 12 * max(cols**2 for _, cols in shapes)
    solved = max(rows * cols * max(1, min(run.num_levels, MAX_ELEMENTS // (rows * cols))) for rows, cols in shapes)
    states = min(run.calibration_state_bytes, run.limit_of_states)
    remedy = fewer_levels(run)
    of_calibration = (
        MemoryItem("hidden states of the calibration tokens", states, "lower evaluator.states_gb"),
        MemoryItem("Hessians and factors", hessians + factors),
    )
    return (
        *(of_calibration if run.needs_hessians else ()),
        MemoryItem("levels being solved", 9 * solved, remedy),
        MemoryItem("levels being written", 2 * run.level_bytes // run.model.num_blocks, remedy),
    )


def fewer_levels(run: PlannedRun) -> str:
    """The advice to take fewer levels, where the compressor has several and says by a known setting how many."""
    settings = [name for name in LEVEL_SETTINGS if hasattr(run.job.compress, name) and run.num_levels > 1]
    return f"take fewer levels in compress.{settings[0]}" if settings else ""


def memory_of_evaluator(count: EvaluatorCount) -> tuple[MemoryItem, ...]:
    """What the evaluator needs in addition for what was counted."""
    run = count.run
    of_teacher = min(run.limit_of_states // 2, count.teacher_tokens * run.state_bytes)
    of_students = 2 * count.student_tokens * run.state_bytes  # before a block and after it
    head_tokens = run.job.evaluator.head_tokens
    of_batches = 6 * 4 * head_tokens * run.model.vocab_size
    of_tables = 8 * 4 * HEAD_TOKENS * run.model.vocab_size * count.has_tables
    return (
        MemoryItem("decoded levels", count.decoded.most_bytes, "lower evaluator.cache_gb"),
        MemoryItem("hidden states of teacher and candidates", of_teacher + of_students, "lower evaluator.states_gb"),
        MemoryItem("logits", max(of_batches, of_tables), "lower evaluator.head_tokens" * (of_batches > of_tables)),
    )
