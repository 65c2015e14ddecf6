"""The estimate of a run as text: tables, and a line of advice for each resource that this machine lacks."""

import torch

from evopress.job import Job
from evopress.planning.estimate import ResourceEstimate
from evopress.planning.machine import free_disk_bytes, free_memory_bytes, operations_per_second
from evopress.planning.planned_run import device_and_dtype
from evopress.runtime import distributed


def estimate_text(estimate: ResourceEstimate, job: Job) -> str:
    """The estimate as a table, compared with what this machine has, and with the settings to change."""
    device, dtype = device_and_dtype(job)
    speed, solver_speed = operations_per_second(device, dtype), operations_per_second(device, torch.float32)
    free_memory, free_disk = free_memory_bytes(device), free_disk_bytes(job.outputs)
    lines = [
        f"{job.model.name}: {estimate.num_weights:,} weights, {estimate.num_units} units",
        f"disk: {_size(estimate.database_bytes)} for the database of levels, {_size(estimate.states_bytes)} for hidden "
        f"states while it is built; {_size(free_disk)} are free at {job.outputs}",
        f"memory of {device}: {_size(free_memory)} are free for each of {distributed.world_size()} processes",
        f"time: at {speed / 1e9:,.0f} billion operations per second in the model, {solver_speed / 1e9:,.0f} in float32 "
        f"(Hessians and solves): half of what a product reaches on {device}",
        "",
        *_stage_table(estimate, speed, solver_speed),
        *_memory_table(estimate),
        "",
        *(advice(estimate, free_memory=free_memory, free_disk=free_disk) or ["Everything fits."]),
    ]
    return "\n".join(lines)


def _stage_table(estimate: ResourceEstimate, speed: float, solver_speed: float) -> list[str]:
    lines = [f"{'stage':10}{'tokens':>16}{'tokens/s':>12}{'hours':>10}{'peak memory':>14}", "-" * 62]
    for stage in estimate.stages:
        seconds = (stage.operations / speed + stage.solver_operations / solver_speed) / distributed.world_size()
        tokens_per_s = stage.tokens / seconds if seconds else 0.0
        lines.append(
            f"{stage.name:10}{stage.tokens:16,.0f}{tokens_per_s:12,.0f}{seconds / 3600:10.2f}"
            f"{_size(stage.memory_bytes):>14}"
        )
    return lines


def _memory_table(estimate: ResourceEstimate) -> list[str]:
    lines = []
    for stage in estimate.stages:
        lines.append("")
        lines += [
            f"{stage.name:10}{_size(item.size_bytes):>10}  {item.content}  ({item.remedy})"
            for item in stage.memory
            if item.size_bytes
        ]
    return lines


def advice(estimate: ResourceEstimate, *, free_memory: int, free_disk: int) -> list[str]:
    """A line for each resource that is too small, with the settings to change. `free_memory` is that of one process."""
    lines = []
    if estimate.database_bytes + estimate.states_bytes > free_disk:
        lines.append(
            f"The database takes {_size(estimate.database_bytes)} and hidden states {_size(estimate.states_bytes)}, "
            f"but {_size(free_disk)} are free: set outputs to a larger disk, take fewer levels (compress.bits, "
            f"compress.num_levels), or lower data.calibration_tokens."
        )
    for stage in estimate.stages:
        if stage.memory_bytes > free_memory:
            largest = max(stage.memory, key=lambda item: item.size_bytes)
            lines.append(
                f"The {stage.name} stage takes {_size(stage.memory_bytes)} of memory but {_size(free_memory)} are "
                f"free, most of it for {largest.content}: {largest.remedy}."
            )
    return lines


def _size(size_bytes: float) -> str:
    return f"{size_bytes / 1e9:,.1f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:,.1f} MB"
