"""How fast this machine is, and how much memory and disk space it has free."""

import os
import shutil
from contextlib import suppress
from pathlib import Path
from time import perf_counter

import torch

from evopress.runtime import distributed

SHARE_OF_PEAK = 0.5
"""What a model reaches of the speed of a large matrix product."""

REPEATS = 4
SIZE = 1024


def operations_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """The speed that a model will have: half of that of a large matrix product, which is measured here."""
    matrix = torch.ones(SIZE, SIZE, device=device, dtype=dtype)
    matrix @ matrix
    started = perf_counter()
    for _ in range(REPEATS):
        product = matrix @ matrix
    float(product[0, 0])  # waits for the device
    return SHARE_OF_PEAK * REPEATS * 2 * SIZE**3 / (perf_counter() - started)


def free_memory_bytes(device: torch.device) -> int:
    """Free memory of a GPU, or this process's share of the free memory of the machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024 // distributed.world_size()
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // distributed.world_size()


def free_disk_bytes(folder: Path) -> int:
    """Free space of the disk that `folder` is on, or will be on."""
    path = folder.absolute()
    return shutil.disk_usage(next(parent for parent in (path, *path.parents) if parent.exists())).free
