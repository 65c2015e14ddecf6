"""Offloading: blocks are stored on another device, and copied one at a time to the device that computes."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module


@dataclass
class DeviceCopy:
    """The offloaded tensors of the block that ran last, copied to the device and kept for its next batch."""

    block: int | None = None
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def tensors_of(
        self, index: int, block: Module, *, device: torch.device, excluded: Collection[str]
    ) -> dict[str, Tensor]:
        """Copies of the block's offloaded parameters and buffers by name, except those in `excluded`."""
        if index != self.block:
            self.block, self.tensors = index, {}
        offloaded = [
            (name, tensor)
            for name, tensor in chain(block.named_parameters(), block.named_buffers())
            if name not in excluded and is_offloaded(tensor, device)
        ]
        for name, tensor in offloaded:
            if name not in self.tensors:
                self.tensors[name] = tensor.to(device, non_blocking=True)
        return {name: self.tensors[name] for name, _ in offloaded}


def is_offloaded(tensor: Tensor, device: torch.device) -> bool:
    """Whether a tensor is stored on a different device from the one that computes."""
    return tensor.device != device


def has_offloaded_parameters(model: Module, device: torch.device) -> bool:
    return any(is_offloaded(parameter, device) for parameter in model.parameters())


class StandIn(Module):
    """Replaces a block in its model and has the block's public attributes, some of which the model reads."""

    def __init__(self, block: Module, run: Callable[..., Any]):
        super().__init__()
        self._attributes = {name: value for name, value in vars(block).items() if not name.startswith("_")}
        self._run = run

    def __getattr__(self, name: str) -> Any:
        attributes = self.__dict__.get("_attributes", {})
        return attributes[name] if name in attributes else super().__getattr__(name)

    def forward(self, hidden: Tensor, **kwargs: object) -> Any:
        return self._run(hidden, **kwargs)
