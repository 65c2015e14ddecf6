"""Measures the table of a latency budget on this machine: every layer is decoded and multiplied with torch.

An engine that multiplies packed weights is faster, and another level may be its fastest. For an engine, give a table
that was measured in it.
"""

import logging
import platform
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from evopress.compressors.base import Compressor, LayerGroup
from evopress.compressors.drop import Drop
from evopress.job import Job
from evopress.models.attention_cache import head_shape
from evopress.models.loading import load_structure
from evopress.models.source import ModelSource
from evopress.models.structure import ModelStructure
from evopress.planning.planned_run import device_and_dtype, unpriced_space
from evopress.planning.sample import Timeable
from evopress.planning.speed import COLS_MULTIPLE, fastest_seconds
from evopress.runtime.files import write_atomically
from evopress.space.latency import DENSE, LatencyBudget, LatencyTable, shape_name, table_json
from evopress.space.shapes import LayerShape, layer_shape

log = logging.getLogger(__name__)

MAX_ROWS, MAX_COLS = 1024, 4096
"""Larger layers are timed at this size, and their seconds are scaled up by their number of weights."""


def ensure_table(job: Job, budget: LatencyBudget) -> None:
    """Measure the table of the budget and write it, unless the file exists."""
    path = Path(budget.table)
    if path.exists():
        return
    model = load_structure(job.model, job.outputs / "cache") if isinstance(job.model, ModelSource) else job.model
    table = measure_table(job, model, batch=budget.batch, length=budget.length)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, table_json(table))
    log.info("measured %d shapes of layers on %s; the table is in %s", len(table.layers), table.device, path)


@torch.no_grad()
def measure_table(job: Job, model: ModelStructure, *, batch: int, length: int) -> LatencyTable:
    """The times of all layers of a model at all levels of the job, on the device of the job."""
    device, dtype = device_and_dtype(job)
    units = unpriced_space(job, model).units
    in_blocks = [model.layer_name(block, local) for block in range(model.num_blocks) for local in model.layers(block)]
    compressed = _by_size(model, (name for unit in units for name in unit.layers))
    every = _by_size(model, [*in_blocks, model.embedding_and_head[-1]]) | compressed
    layers = {
        shape_name(*size): _layer_times(
            shape, job.compress if size in compressed else None, batch=batch, device=device, dtype=dtype
        )
        for size, shape in every.items()
    }
    head = layer_shape(model, model.embedding_and_head[-1])
    is_head_compressed = any(model.embedding_and_head[-1] in unit.layers for unit in units)
    return LatencyTable(
        batch=batch,
        length=length,
        layers=layers,
        attention=_attention_seconds(model, batch=batch, length=length, device=device, dtype=dtype),
        rest=0.0 if is_head_compressed else layers[shape_name(head.rows, head.cols)][DENSE],
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or device.type,
    )


def _by_size(model: ModelStructure, names: Iterable[str]) -> dict[tuple[int, int], LayerShape]:
    """One layer of every shape, by rows and columns."""
    shapes = (layer_shape(model, name) for name in names)
    return {(shape.rows, shape.cols): shape for shape in shapes}


def _layer_times(
    shape: LayerShape, compressor: Compressor | Drop | None, *, batch: int, device: torch.device, dtype: torch.dtype
) -> dict[str, float]:
    """Seconds by the label of the level, and of the dense layer."""
    rows = min(shape.rows, MAX_ROWS)
    cols = shape.cols if shape.cols % COLS_MULTIPLE else min(shape.cols, MAX_COLS)
    weight = torch.randn(rows, cols, device=device) * cols**-0.5
    inputs = torch.randn(batch, cols, device=device, dtype=dtype)
    scale = shape.rows * shape.cols / (rows * cols)

    def seconds(make: Callable[[], Tensor]) -> float:
        return scale * fastest_seconds(Timeable(lambda: functional.linear(inputs, make())), device)

    stored = weight.to(dtype)
    times = {DENSE: seconds(lambda: stored)}
    if isinstance(compressor, Compressor):
        compressor = compressor.for_hidden_size(cols)
        hessian = torch.eye(cols, device=device) + 0.5 if compressor.needs_hessian else None
        (levels,) = compressor.compress_sample(LayerGroup((shape.name,), (weight,), hessian)).levels
        labels = [level.label for level in compressor.levels(shape)]
        packed = dict(zip(labels, (level.to(device) for level in levels), strict=True))
        times |= {label: seconds(partial(level.dense, dtype)) for label, level in packed.items()}
    return times


def _attention_seconds(
    model: ModelStructure, *, batch: int, length: int, device: torch.device, dtype: torch.dtype
) -> float:
    """Seconds of one attention between its layers: one query per sequence against the cache."""
    heads, kv_heads, head_dim = head_shape(model)
    query = torch.randn(batch, heads, 1, head_dim, device=device, dtype=dtype)
    key, value = torch.randn(2, batch, kv_heads, length, head_dim, device=device, dtype=dtype)
    attend = functional.scaled_dot_product_attention
    return fastest_seconds(Timeable(lambda: attend(query, key, value, enable_gqa=True)), device)
