"""How much memory a stage took: of the GPU where there is one, else of the process."""

import resource
from contextlib import suppress
from pathlib import Path

import torch


def start_peak() -> None:
    """Forget earlier peaks, where the system can."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """The highest use of memory since `start_peak`, or since the process began where the system cannot forget."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
