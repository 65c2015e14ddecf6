"""Estimates what a process holds in memory during each stage, and names settings that make it smaller."""

from evopress.compressors.drop import Drop
from evopress.compressors.sweep import MAX_ELEMENTS
from evopress.database.token_weights import role
from evopress.evaluation.switch_gradients import HEAD_TOKENS
from evopress.models.source import ModelSource
from evopress.planning.counting import EvaluatorCount
from evopress.planning.estimate import MemoryItem
from evopress.planning.model_size import group_shapes, kinds_of_blocks, resident_weights
from evopress.planning.planned_run import PlannedRun
from evopress.runtime import distributed
from evopress.runtime.memory import free_memory_bytes

LIBRARIES_BYTES = 500_000_000
"""Memory that the libraries take in a process, measured with torch 2.13 for the CPU."""


def memory_of_every_stage(run: PlannedRun) -> tuple[MemoryItem, ...]:
    """The libraries, the model, and the activations of a block."""
    source = run.job.model
    offload = isinstance(source, ModelSource) and source.offload
    weights = resident_weights(run.model, offload=offload) * run.dtype.itemsize
    widest = max(max(sum(rows), cols) for shapes in _shapes_by_kind(run) for rows, cols in shapes)
    window, batch_tokens = run.job.data.window, run.job.evaluator.batch_tokens
    activations = 4 * max(window, batch_tokens) * widest * run.dtype.itemsize
    smaller_batch = "lower evaluator.batch_tokens" if batch_tokens > window else "lower data.window"
    return (
        MemoryItem("the libraries", LIBRARIES_BYTES),
        MemoryItem("the model's weights", weights, _smaller_model(run)),
        MemoryItem("a batch in a block", activations, smaller_batch),
    )


def _smaller_model(run: PlannedRun) -> str:
    """The settings that make the model smaller and are not in use yet. A model in memory has no settings."""
    source = run.job.model
    if not isinstance(source, ModelSource):
        return ""
    settings = ["model.offload=true"] * (not source.offload) + ["model.dtype=bfloat16"] * (run.dtype.itemsize > 2)
    return f"set {' or '.join(settings)}" if settings else ""


def memory_of_database(run: PlannedRun) -> tuple[MemoryItem, ...]:
    """What the database stage holds in addition."""
    if not run.num_levels:
        return ()
    by_kind = [[(sum(rows), cols) for rows, cols in shapes] for shapes in _shapes_by_kind(run)]
    shapes = [shape for shapes_of_kind in by_kind for shape in shapes_of_kind]
    squares = max(sum(cols**2 for _, cols in shapes_of_kind) for shapes_of_kind in by_kind)
    summing = 8 * squares  # the Hessian of the current tokens, and the running mean
    solving = 4 * squares + 8 * max(cols**2 for _, cols in shapes)  # the factor, and the scaled Hessian for the refit
    solved = max(rows * cols * max(1, min(run.num_levels, MAX_ELEMENTS // (rows * cols))) for rows, cols in shapes)
    states = min(run.calibration_state_bytes, run.limit_of_states)
    weighed_tokens = run.weighs_tokens * max(run.job.data.window, run.job.evaluator.batch_tokens)
    weighed = run.model.num_blocks * weighed_tokens * run.state_bytes
    roles = [{role(group[0]) for group in run.model.layer_groups(block)} for block in range(run.model.num_blocks)]
    tokens = run.calibration_tokens // distributed.world_size()
    token_weights = 4 * run.weighs_tokens * tokens * sum(map(len, roles))
    remedy = fewer_levels(run)
    for_calibration = (
        MemoryItem("hidden states of the calibration tokens", states, "lower evaluator.states_gb"),
        MemoryItem("states of a batch whose tokens are weighed", weighed, "lower evaluator.batch_tokens"),
        MemoryItem(
            "weights of the calibration tokens",
            token_weights,
            "lower data.calibration_tokens or set compress.weigh_tokens=false",
        ),
        MemoryItem("Hessians and factors", max(summing, solving)),
    )
    return (
        *(for_calibration if run.needs_hessians else ()),
        MemoryItem("levels being solved", 9 * solved, remedy),
        MemoryItem("levels being written", 2 * run.level_bytes // run.model.num_blocks, remedy),
    )


def fewer_levels(run: PlannedRun) -> str:
    """The advice to take fewer levels, if the compressor has several and a known setting for their number."""
    compress = run.job.compress
    if isinstance(compress, Drop) or "." not in compress.levels_key or run.num_levels == 1:
        return ""
    return f"take fewer levels in {compress.levels_key}"


def memory_of_tuning(run: PlannedRun) -> tuple[MemoryItem, ...]:
    """What the tuning holds in addition. Scales and norms are so few that they do not count."""
    tune = run.job.tune
    if not (tune.weights_lr and tune.tokens):
        return _memory_of_rounding(run)
    weights = sum(_weights_of_block(run, block) for block in run.model.alike)
    trained = int((1 - float(run.job.budget.target)) * weights)
    name = "changes of the trained weights, the best ones, and two moments"
    return (MemoryItem(name, 4 * 4 * trained, "set tune.weights_lr=0"), *_memory_of_rounding(run))


def _memory_of_rounding(run: PlannedRun) -> tuple[MemoryItem, ...]:
    """What learning the rounding of a block holds, in the process that does it."""
    if run.job.tune.resolve == "none":
        return ()
    tune, data = run.job.tune, run.job.data
    num_tokens = tune.num_resolve_windows(data.num_windows("calibration")) * tune.window(data.window)
    states = min(2 * num_tokens * run.state_bytes, run.limit_of_states)
    weights = max(_weights_of_block(run, block) for block in kinds_of_blocks(run.model))
    return (
        MemoryItem("hidden states of both models on the calibration tokens", states, "lower evaluator.states_gb"),
        MemoryItem("the rounding of a block, and its gradients", (6 * 4 + run.dtype.itemsize) * weights),
    )


def _shapes_by_kind(run: PlannedRun) -> list[list[tuple[tuple[int, ...], int]]]:
    """The shapes of the groups of each kind of block."""
    return [group_shapes(run.model, block) for block in kinds_of_blocks(run.model)]


def _weights_of_block(run: PlannedRun, block: int) -> int:
    return sum(sum(rows) * cols for rows, cols in group_shapes(run.model, block))


def memory_of_evaluator(count: EvaluatorCount) -> tuple[MemoryItem, ...]:
    """What the stages of the evaluator hold in addition, for the work that was counted."""
    run = count.run
    teacher_states = min(run.limit_of_states // 2, count.teacher_tokens * run.state_bytes)
    head_tokens = run.job.evaluator.head_tokens
    batch_logits = 6 * 4 * head_tokens * run.model.vocab_size
    table_logits = 8 * 4 * HEAD_TOKENS * run.model.vocab_size * count.has_tables
    states = min(run.limit_of_states, teacher_states + count.student_bytes)  # their peaks are at different times
    logits = max(batch_logits, table_logits)
    return (
        *_packed_levels(run),
        MemoryItem("decoded levels", count.decoded.most_bytes, "lower evaluator.cache_gb"),
        MemoryItem("hidden states of teacher and candidates", states, "lower evaluator.states_gb"),
        MemoryItem("logits", logits, "lower evaluator.head_tokens" * (batch_logits > table_logits)),
    )


def _packed_levels(run: PlannedRun) -> tuple[MemoryItem, ...]:
    """On a GPU, packed levels take half of the memory that the model leaves, or less. A CPU maps them from files."""
    if run.device.type != "cuda":
        return ()
    left = free_memory_bytes(run.device) - sum(item.size_bytes for item in memory_of_every_stage(run))
    return (MemoryItem("packed levels", max(0, min(run.level_bytes, left // 2))),)
