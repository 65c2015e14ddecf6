"""Memory for hidden states: on the device or, if they do not fit, in a file that is mapped into memory."""

import logging
import os
from math import prod
from pathlib import Path
from tempfile import NamedTemporaryFile

import torch
from torch import Tensor

from evopress.runtime.files import path_in_errors

log = logging.getLogger(__name__)


def allocate_states(
    shape: tuple[int, ...], dtype: torch.dtype, *, device: torch.device, limit_bytes: float, folder: Path
) -> Tensor:
    """An uninitialised tensor: on the device, or in a memory-mapped file in `folder` if it exceeds `limit_bytes`.

    The operating system keeps as much of the file in memory as there is room for. The file has no name, so it
    disappears with the process. Its space is reserved immediately, so a full disk raises OSError here. Otherwise a
    later write to mapped memory would fail and kill the process.
    """
    size_bytes = prod(shape) * dtype.itemsize
    if size_bytes <= limit_bytes:
        return torch.empty(shape, dtype=dtype, device=device)
    log.info("hidden states, %.1f GB, are in a file in %s (evaluator.states_gb)", size_bytes / 1e9, folder)
    with path_in_errors(folder), NamedTemporaryFile(dir=folder, prefix=".states-", suffix=".tmp") as file:
        os.posix_fallocate(file.fileno(), 0, size_bytes)
        return torch.from_file(file.name, shared=True, size=prod(shape), dtype=dtype).view(shape)
