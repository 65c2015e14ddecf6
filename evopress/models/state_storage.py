"""Memory for hidden states: on the device or, if they do not fit, in a file that is mapped into memory."""

import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from math import inf, prod
from pathlib import Path
from tempfile import NamedTemporaryFile, gettempdir

import torch
from torch import Tensor

from evopress.runtime.files import path_in_errors
from evopress.runtime.memory import free_memory_bytes

log = logging.getLogger(__name__)

PINNED_SHARE = 1 / 8
"""The share of the machine's free memory that states of a GPU in one list may take."""


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

    States from a GPU that exceed the limit are in pinned memory of the machine while enough of that is free. The
    default folder is the one for temporary files.
    """

    limit_bytes: float = inf
    folder: Path | None = None

    def share(self, num_lists: int) -> "StateMemory":
        """The limit of each of `num_lists` lists that exist at the same time."""
        return replace(self, limit_bytes=self.limit_bytes / num_lists)

    def keep(self, states: Iterable[Tensor]) -> list[Tensor]:
        """The states, which may be computed one by one. Those beyond the limit are copied to the CPU.

        A copy from a GPU may still be in progress, so only the GPU may use it.
        """
        kept: list[Tensor] = []
        room, remaining = self.limit_bytes, iter(states)
        for state in remaining:
            room -= state.nbytes
            if room < 0:
                return [*kept, *self._copies(chain([state], remaining))]
            kept.append(state)
        return kept

    def _copies(self, states: Iterable[Tensor]) -> Iterator[Tensor]:
        folder = self.folder or Path(gettempdir())
        room = free_memory_bytes(torch.device("cpu")) * PINNED_SHARE
        for state in states:
            room -= state.nbytes
            if state.is_cuda and room >= 0:
                yield torch.empty(state.shape, dtype=state.dtype, pin_memory=True).copy_(state, non_blocking=True)
            else:
                yield _mapped(tuple(state.shape), state.dtype, folder=folder).copy_(state)


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
