"""Peak memory: of the GPU if there is one, otherwise of the process."""

import resource
from contextlib import suppress
from pathlib import Path

import torch


def start_peak() -> None:
    """Reset the peak. Outside Linux, the peak of the process cannot be reset."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """The highest memory use since `start_peak`, or since the process started if the peak could not be reset."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
