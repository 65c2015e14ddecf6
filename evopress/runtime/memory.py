"""Free memory, and peak memory of the GPU if the process uses one, otherwise of the process."""

import resource
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import torch

from evopress.runtime import distributed

MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes in the unit of `ru_maxrss`: macOS counts bytes, Linux and BSD count kilobytes."""


def start_peak() -> None:
    """Reset the peak. Outside Linux, the peak of the process cannot be reset."""
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """The highest memory use since `start_peak`, or since the process started if the peak could not be reset.

    A run on the CPU does not initialise CUDA, so its peak is that of the process even on a machine with a GPU.
    """
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MAXRSS_UNIT


def free_memory_bytes(device: torch.device) -> int:
    """Free memory of a GPU, or this process's share of the free memory of the machine."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return psutil.virtual_memory().available // distributed.local_world_size()
