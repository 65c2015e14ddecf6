"""What does not fit on the device: blocks that visit it one at a time, and tensors that live in a file."""

import logging
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from itertools import chain
from math import prod
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from evopress.runtime.files import path_in_errors

log = logging.getLogger(__name__)


@dataclass
class Visit:
    """What the block that ran last has on the device, kept for the next batch that runs through it."""

    block: int | None = None
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def of(self, index: int, block: Module, device: torch.device, replaced: Collection[str]) -> dict[str, Tensor]:
        """Copies of the parameters and buffers that rest elsewhere, by name, but those that are `replaced` anyway."""
        if index != self.block:
            self.block, self.tensors = index, {}
        wanted = [
            (name, tensor)
            for name, tensor in chain(block.named_parameters(), block.named_buffers())
            if name not in replaced and rests_elsewhere(tensor, device)
        ]
        for name, tensor in wanted:
            if name not in self.tensors:
                self.tensors[name] = tensor.to(device, non_blocking=True)
        return {name: self.tensors[name] for name, _ in wanted}


def room_for(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, *, limit_bytes: float, folder: Path
) -> Tensor:
    """A tensor to be filled: on the device, or above the limit in a file of `folder` that is mapped into memory.

    The system keeps of the file in memory what there is room for. It has no name, so it goes with the process. Its
    space is taken at once: a disk that is too full is an OSError here, where a write later on would end the process.
    """
    size = prod(shape) * dtype.itemsize
    if size <= limit_bytes:
        return torch.empty(shape, dtype=dtype, device=device)
    log.info("hidden states, %.1f GB, are in a file in %s (evaluator.states_gb)", size / 1e9, folder)
    with path_in_errors(folder), NamedTemporaryFile(dir=folder, prefix=".states-", suffix=".tmp") as file:
        os.posix_fallocate(file.fileno(), 0, size)
        return torch.from_file(file.name, shared=True, size=prod(shape), dtype=dtype).view(shape)


def rests_elsewhere(tensor: Tensor, device: torch.device) -> bool:
    """Whether a tensor is not on the device that computes."""
    return tensor.device != device


class StandIn(Module):
    """Takes the place of a block in its model, which reads some attributes of the block besides calling it."""

    def __init__(self, block: Module, run: Callable[..., Any]):
        super().__init__()
        self._attributes = {name: value for name, value in vars(block).items() if not name.startswith("_")}
        self._run = run

    def __getattr__(self, name: str) -> Any:
        attributes = self.__dict__.get("_attributes", {})
        return attributes[name] if name in attributes else super().__getattr__(name)

    def forward(self, hidden: Tensor, **kwargs: object) -> Any:
        return self._run(hidden, **kwargs)
