"""Memory for hidden states: on the device or, if they do not fit, in a file that is mapped into memory."""

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import inf, prod
from pathlib import Path
from tempfile import NamedTemporaryFile, gettempdir

import torch
from torch import Tensor

from evopress.runtime.files import path_in_errors

log = logging.getLogger(__name__)


def allocate_states(
    shape: tuple[int, ...], dtype: torch.dtype, *, device: torch.device, limit_bytes: float, folder: Path
) -> Tensor:
    """An uninitialised tensor: on the device, or in a memory-mapped file in `folder` if it exceeds `limit_bytes`."""
    size_bytes = prod(shape) * dtype.itemsize
    if size_bytes <= limit_bytes:
        return torch.empty(shape, dtype=dtype, device=device)
    log.info("hidden states, %.1f GB, are in a file in %s (evaluator.states_gb)", size_bytes / 1e9, folder)
    return _mapped(shape, dtype, folder=folder)


@dataclass(frozen=True)
class StateMemory:
    """Where lists of hidden states are kept: each up to `limit_bytes` as they are, and the rest in files in `folder`.

    The default folder is the one for temporary files.
    """

    limit_bytes: float = inf
    folder: Path | None = None

    def share(self, num_lists: int) -> "StateMemory":
        """The limit of each of `num_lists` lists that exist at the same time."""
        return replace(self, limit_bytes=self.limit_bytes / num_lists)

    def keep(self, states: Iterable[Tensor]) -> list[Tensor]:
        """The states, which may be computed one by one. Those beyond the limit are on the CPU, mapped from files."""
        kept: list[Tensor] = []
        room = self.limit_bytes
        for state in states:
            room -= state.nbytes
            kept.append(state if room >= 0 else self._in_file(state))
        return kept

    def _in_file(self, state: Tensor) -> Tensor:
        return _mapped(tuple(state.shape), state.dtype, folder=self.folder or Path(gettempdir())).copy_(state)


def _mapped(shape: tuple[int, ...], dtype: torch.dtype, *, folder: Path) -> Tensor:
    """An uninitialised tensor in a file in `folder` that is mapped into memory.

    The operating system keeps as much of the file in memory as there is room for. The file has no name, so it
    disappears with the tensor. Its space is reserved immediately, so a full disk raises OSError here. Otherwise a later
    write to mapped memory would fail and kill the process.
    """
    with path_in_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with path_in_errors(folder), NamedTemporaryFile(dir=folder, prefix=".states-", suffix=".tmp") as file:
        os.posix_fallocate(file.fileno(), 0, prod(shape) * dtype.itemsize)
        return torch.from_file(file.name, shared=True, size=prod(shape), dtype=dtype).view(shape)
