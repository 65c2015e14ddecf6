"""Offloading: blocks are stored on another device, and copied one by one to the device that computes."""

from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from evopress.models.transfers import Transfer

BLOCKS_ON_DEVICE = 2
"""How many offloaded blocks have copies on the device at once."""


@dataclass
class DeviceCopy:
    """Copies on the device of the offloaded tensors of two blocks: the one that ran last, and the one that is next."""

    blocks: OrderedDict[int, dict[str, Transfer]] = field(default_factory=OrderedDict)

    def tensors_of(
        self, index: int, block: Module, *, device: torch.device, excluded: Collection[str]
    ) -> dict[str, Tensor]:
        """Copies of the block's offloaded parameters and buffers by name, except those in `excluded`."""
        transfers = self.prefetch(index, block, device=device, excluded=excluded)
        return {name: transfer.tensor() for name, transfer in transfers.items()}

    def prefetch(
        self, index: int, block: Module, *, device: torch.device, excluded: Collection[str]
    ) -> dict[str, Transfer]:
        """Start these copies, if they are not there. Those of the block that was not used for longest are dropped."""
        started = self.blocks.setdefault(index, {})
        self.blocks.move_to_end(index)
        while len(self.blocks) > BLOCKS_ON_DEVICE:
            self.blocks.popitem(last=False)
        offloaded = {
            name: tensor
            for name, tensor in chain(block.named_parameters(), block.named_buffers())
            if name not in excluded and is_offloaded(tensor, device)
        }
        started |= {name: Transfer(tensor, device) for name, tensor in offloaded.items() if name not in started}
        return {name: started[name] for name in offloaded}


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
