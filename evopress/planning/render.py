"""The plan of a run against what this machine has: a table, and one line for each thing that does not fit."""

import os
import shutil
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import torch

from evopress.models.source import ModelSource, device_of, dtype_of
from evopress.planning.estimate import Plan
from evopress.runtime import distributed

if TYPE_CHECKING:
    from evopress.job import Job


def plan_text(found: Plan, job: "Job") -> str:
    """The plan as a table, with what does not fit and the setting to change."""
    device = device_of(job.model) if isinstance(job.model, ModelSource) else job.model.device
    dtype = dtype_of(job.model, device) if isinstance(job.model, ModelSource) else job.model.dtype
    rate, solving_rate = operations_per_second(device, dtype), operations_per_second(device, torch.float32)
    free, disk = free_bytes(device), shutil.disk_usage(_existing(job.outputs)).free
    lines = [
        f"{job.model.name}: {found.num_weights:,} weights, {found.num_units} units",
        f"disk: {_size(found.database_bytes)} for the database of levels, {_size(found.states_bytes)} for hidden "
        f"states while it is built; {_size(disk)} are free at {job.outputs}",
        f"memory of {device}: {_size(free)} are free for each of {distributed.world_size()} processes",
        f"time: at {rate / 1e9:,.0f} billion operations per second in the model, {solving_rate / 1e9:,.0f} in float32 "
        f"(Hessians and solves): half of what a product reaches on {device}",
        "",
        f"{'stage':10}{'tokens':>16}{'tokens/s':>12}{'hours':>10}{'peak memory':>14}",
        "-" * 62,
    ]
    for stage in found.stages:
        seconds = (stage.operations / rate + stage.solving / solving_rate) / distributed.world_size()
        speed = stage.tokens / seconds if seconds else 0.0
        lines.append(
            f"{stage.name:10}{stage.tokens:16,.0f}{speed:12,.0f}{seconds / 3600:10.2f}{_size(stage.memory_bytes):>14}"
        )
    for stage in found.stages:
        lines.append("")
        lines += [
            f"{stage.name:10}{_size(part.bytes):>10}  {part.what}  ({part.key})" for part in stage.memory if part.bytes
        ]
    return "\n".join([*lines, "", *(advice(found, free_memory=free, free_disk=disk) or ["Everything fits."])])


def advice(found: Plan, *, free_memory: int, free_disk: int) -> list[str]:
    """One line for each thing that does not fit, with the settings to change."""
    lines = []
    if found.database_bytes + found.states_bytes > free_disk:
        lines.append(
            f"The database takes {_size(found.database_bytes)} and hidden states {_size(found.states_bytes)}, but "
            f"{_size(free_disk)} are free: set outputs to a larger disk, take fewer levels (compress.bits, "
            f"compress.num_levels), or lower data.calibration_tokens."
        )
    for stage in found.stages:
        if stage.memory_bytes > free_memory:
            largest = max(stage.memory, key=lambda amount: amount.bytes)
            lines.append(
                f"The {stage.name} stage takes {_size(stage.memory_bytes)} of memory but {_size(free_memory)} are "
                f"free, most of it for {largest.what}: {largest.key}."
            )
    return lines


def operations_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """Measured on a product of two matrices; a model reaches about half of it, which is what this gives."""
    matrix = torch.ones(1024, 1024, device=device, dtype=dtype)
    matrix @ matrix
    started = perf_counter()
    for _ in range(4):
        product = matrix @ matrix
    float(product[0, 0])  # waits for the device
    return 0.5 * 4 * 2 * 1024**3 / (perf_counter() - started)


def free_bytes(device: torch.device) -> int:
    """Free memory of the device, or this process's share of the machine's for the CPU."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024 // distributed.world_size()
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // distributed.world_size()


def _existing(folder: Path) -> Path:
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def _size(number: float) -> str:
    return f"{number / 1e9:,.1f} GB" if number >= 1e9 else f"{number / 1e6:,.1f} MB"
