"""Estimates every stage of a job without loading its model.

With P weights in the blocks and the head, and rows × cols weights in each group of layers that share an input::

    forward pass    2 P operations per token
    database        two forward passes over the calibration tokens; with a Hessian also, for each group, cols² per
                    token (half of a symmetric product), ⅔ cols³ for the factor, rows cols² for each level, and
                    2 rows cols² for the errors of the levels
    search          a dry run of the search for every target; profiles with a common prefix share its blocks
    evaluate        the dense, the uniform and the searched model on every test set
    memory          the weights, and what each stage needs in addition (`memory.py`)
"""

from math import ceil

from evopress.job import Job
from evopress.planning.dry_run import dry_run_targets
from evopress.planning.estimate import ResourceEstimate, StageEstimate
from evopress.planning.memory import memory_of_database, memory_of_evaluator, memory_of_every_stage
from evopress.planning.model_size import active_weights, group_shapes, operations_per_token, share_of_tokens
from evopress.planning.planned_run import PlannedRun, plan_run
from evopress.runtime import distributed


def estimate_resources(job: Job) -> ResourceEstimate:
    """Estimate all stages of a job.

    Raises ValueError for a model whose configuration cannot be read, and for settings that do not fit the model.
    """
    run = plan_run(job)
    return ResourceEstimate(
        num_weights=sum(parameter.numel() for parameter in run.model.model.parameters()),
        num_units=len(run.space),
        database_bytes=run.level_bytes,
        states_bytes=_states_on_disk(run),
        stages=(_database_stage(run), *_search_and_evaluate_stages(run)),
    )


def _database_stage(run: PlannedRun) -> StageEstimate:
    if not run.needs_hessians:
        return StageEstimate("database", 0, 0, memory_of_every_stage(run))
    return StageEstimate(
        name="database",
        tokens=2.0 * run.calibration_tokens,
        operations=4.0 * active_weights(run.model) * run.calibration_tokens,
        memory=(*memory_of_every_stage(run), *memory_of_database(run)),
        solver_operations=_solver_operations(run),
    )


def _solver_operations(run: PlannedRun) -> float:
    """Operations for Hessians, factors, levels and their errors."""
    total = 0.0
    num_levels = max(len(unit.levels) for unit in run.space.units)
    for (rows, cols), (first_layer, *_) in zip(group_shapes(run.model), run.model.layer_groups, strict=True):
        tokens = share_of_tokens(run.model, first_layer) * run.calibration_tokens
        per_block = tokens * cols**2 + cols**3 / 1.5 + (num_levels + 2.0) * rows * cols**2
        total += run.model.num_blocks * per_block
    return total


def _states_on_disk(run: PlannedRun) -> int:
    is_in_files = run.calibration_state_bytes > run.job.evaluator.states_gb * 1e9
    return run.calibration_state_bytes * distributed.world_size() * (is_in_files and run.needs_hessians)


def _test_tokens(job: Job) -> int:
    """Tokens of all test sets, in whole windows; roughly, for those that are measured whole."""
    return sum(ceil(test_set.about_tokens() / job.data.window) * job.data.window for test_set in job.test_sets)


def _search_and_evaluate_stages(run: PlannedRun) -> tuple[StageEstimate, StageEstimate]:
    dry_runs = dry_run_targets(run.job, run.model.num_blocks, run.space)
    search_tokens = sum(dry_run.token_equivalents for dry_run in dry_runs)
    test_tokens = 4.0 * len(dry_runs) * _test_tokens(run.job)
    levels = frozenset[tuple[int, int]]().union(*(dry_run.levels for dry_run in dry_runs))
    memory = (*memory_of_every_stage(run), *memory_of_evaluator(run, levels))
    per_token = operations_per_token(run.model)
    return (
        StageEstimate("search", search_tokens, search_tokens * per_token, memory),
        StageEstimate("evaluate", test_tokens, test_tokens * per_token, memory),
    )
