"""What a process holds in memory during each stage."""

from evopress.compressors.sweep import MAX_ELEMENTS
from evopress.models.source import ModelSource
from evopress.planning.estimate import MemoryItem
from evopress.planning.model_size import group_shapes, resident_weights
from evopress.planning.planned_run import PlannedRun

LIBRARIES_BYTES = 500_000_000
"""What the libraries take in the memory of a process, measured with torch 2.13 for the CPU."""

FEWER_LEVELS = "take fewer levels in compress.bits"


def memory_of_every_stage(run: PlannedRun) -> tuple[MemoryItem, ...]:
    """The libraries, the model, and the activations of a block."""
    source = run.job.model
    offload = isinstance(source, ModelSource) and source.offload
    weights = resident_weights(run.model, offload=offload) * run.dtype.itemsize
    widest = max(max(shape) for shape in group_shapes(run.model))
    tokens_at_once = max(run.job.data.window, run.job.evaluator.batch_tokens)
    activations = 4 * tokens_at_once * widest * run.dtype.itemsize
    return (
        MemoryItem("the libraries", LIBRARIES_BYTES, "they take the same for every model"),
        MemoryItem("the model's weights", weights, "set model.offload=true or model.dtype=bfloat16"),
        MemoryItem("a batch in a block", activations, "lower evaluator.batch_tokens"),
    )


def memory_of_database(run: PlannedRun) -> tuple[MemoryItem, ...]:
    """What a compressor with Hessians needs in addition."""
    shapes = group_shapes(run.model)
    num_levels = max(len(unit.levels) for unit in run.space.units)
    hessians = 8 * sum(cols**2 for _, cols in shapes)  # those of the tokens at hand, and their running mean
    factors = 12 * max(cols**2 for _, cols in shapes)
    solved_elements = max(rows * cols * max(1, min(num_levels, MAX_ELEMENTS // (rows * cols))) for rows, cols in shapes)
    states = min(run.calibration_state_bytes, run.limit_of_states)
    levels_of_block = run.level_bytes // run.model.num_blocks
    return (
        MemoryItem("hidden states of the calibration tokens", states, "lower evaluator.states_gb"),
        MemoryItem("Hessians and factors", hessians + factors, "they depend on the model only"),
        MemoryItem("levels being solved", 9 * solved_elements, FEWER_LEVELS),
        MemoryItem("levels being written", 2 * levels_of_block, FEWER_LEVELS),
    )


def memory_of_evaluator(run: PlannedRun, levels: frozenset[tuple[int, int]]) -> tuple[MemoryItem, ...]:
    """What the evaluator needs in addition, if it decodes `levels`, given as pairs of unit and level index."""
    settings = run.job.evaluator
    units = [run.space.units[index] for index, _ in levels]
    decoded_weights = sum(unit.num_weights for unit in units if unit.layers)
    cache = min(int(settings.cache_gb * 1e9), decoded_weights * run.dtype.itemsize)
    search_tokens = run.job.data.num_windows("search") * run.job.data.window
    states = min(run.limit_of_states, 3 * search_tokens * run.model.hidden_size * run.dtype.itemsize)
    logits = 6 * 4 * settings.head_tokens * run.model.vocab_size
    return (
        MemoryItem("decoded levels", cache, "lower evaluator.cache_gb"),
        MemoryItem("hidden states of teacher and candidates", states, "lower evaluator.states_gb"),
        MemoryItem("logits", logits, "lower evaluator.head_tokens"),
    )
