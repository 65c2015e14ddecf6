"""Measures how long each operation of a run takes on this machine, in the shapes of the model and after a warm-up.

Long operations are timed in smaller shapes, and their seconds are scaled up in proportion to the cost.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import torch

from evopress.planning import model_operations
from evopress.planning.level_operations import LevelOperations
from evopress.planning.machine import nearest_existing
from evopress.planning.planned_run import PlannedRun
from evopress.planning.sample import Sample, Timeable, sample_of
from evopress.planning.work import Kind, Operation, cost_of

MIN_SECONDS, MIN_CALLS = 0.3, 3
"""An operation is repeated for at least this long, and at least this often."""

LONG_SECONDS = 2.0
"""If the first call takes longer, it is the measurement, without a warm-up."""

MAX_OPERATIONS = {"cpu": 2e10, "cuda": 5e12}
"""Floating-point operations that are timed at once, by the type of the device."""

MIN_TOKENS, MIN_CALIBRATION_TOKENS = 64, 256
"""With fewer tokens at once, most of the time would go into reading weights or writing Hessians."""

COLS_MULTIPLE = 256
"""Groups are shrunk to a multiple of this many columns, which all compressors accept."""

Seconds = dict[Operation, float]
"""The seconds of a single run of each operation."""


def measure_seconds(run: PlannedRun, operations: Iterable[Operation]) -> Seconds:
    """Time every operation on one block with random weights, or on the model itself if it is already in memory."""
    disk = nearest_existing(run.job.outputs)
    seconds: Seconds = {}
    timed: Seconds = {}
    with TemporaryDirectory(dir=disk if os.access(disk, os.W_OK) else None) as folder, torch.no_grad():
        make = _makers(sample_of(run), Path(folder))
        for operation in sorted(operations, key=lambda operation: (operation.kind != "solve", operation)):
            part = smaller(operation, run)
            if part not in timed:
                timed[part] = fastest_seconds(make[part.kind](part), run.device)
            seconds[operation] = timed[part] * _num_operations(operation, run) / _num_operations(part, run)
    return seconds


def _makers(sample: Sample, folder: Path) -> Mapping[Kind, Callable[[Operation], Timeable]]:
    """The function that makes operations of each kind. Levels can be decoded only after some are solved."""
    levels = LevelOperations(sample, folder)
    return {
        "block": partial(model_operations.block, sample),
        "calibrate": partial(model_operations.calibrate, sample),
        "head": partial(model_operations.head, sample),
        "table": partial(model_operations.table, sample),
        "table_head": partial(model_operations.table_head, sample),
        "solve": levels.solve,
        "decode": levels.decode,
        "states": levels.states,
    }


def smaller(operation: Operation, run: PlannedRun) -> Operation:
    """The operation with fewer tokens, or fewer rows and columns, if it has more than `MAX_OPERATIONS`."""
    share = MAX_OPERATIONS[run.device.type] / _num_operations(operation, run)
    if share >= 1:
        return operation
    if operation.kind == "solve":
        side = share ** (1 / 3)
        cols = max(COLS_MULTIPLE, int(side * operation.cols) // COLS_MULTIPLE * COLS_MULTIPLE)
        rows = tuple(max(1, int(side * rows)) for rows in operation.rows)
        return operation._replace(rows=rows, cols=min(cols, operation.cols))
    fewest = MIN_CALIBRATION_TOKENS if operation.kind == "calibrate" else MIN_TOKENS
    num_tokens = min(operation.tokens, max(fewest, int(share * operation.tokens)))
    windows = max(1, num_tokens // operation.length)
    return operation._replace(windows=windows, length=min(operation.length, num_tokens))


def _num_operations(operation: Operation, run: PlannedRun) -> float:
    """Floating-point operations, at least 1."""
    cost = cost_of(operation, run)
    return max(1.0, cost.in_model + cost.in_float32)


def fastest_seconds(timeable: Timeable, device: torch.device) -> float:
    """The seconds of one operation in its fastest call, without the first call, unless that is long."""
    calls = [_seconds(timeable, device)]
    if calls[0] < LONG_SECONDS:
        calls = []
        while len(calls) < MIN_CALLS or sum(calls) < MIN_SECONDS:
            calls.append(_seconds(timeable, device))
    return min(calls) / timeable.times


def _seconds(timeable: Timeable, device: torch.device) -> float:
    started = perf_counter()
    timeable.call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter() - started
