"""Keeps decoded levels in memory, so that the search seldom reads the disk."""

from collections import OrderedDict
from typing import Protocol

import torch
from torch import Tensor

from evopress.weights.base import CompressedWeight


class PackedLevels(Protocol):
    """Levels as they are stored."""

    def read(self, block: int, layer: str, level: int) -> CompressedWeight:
        """One level of one layer, given by its full name."""


class DecodedLevels:
    """Dense weights of the levels in use.

    They take up to `limit_bytes` of memory. Beyond that, the least recently used weights are removed. The weight that
    is in use stays even if it is larger than the limit.
    """

    def __init__(self, database: PackedLevels, *, limit_bytes: int, dtype: torch.dtype, device: torch.device):
        self.database = database
        self.limit_bytes = limit_bytes
        self.dtype = dtype
        self.device = device
        self.kept_bytes = 0
        """Bytes of the weights that are now in memory."""
        self._weights: OrderedDict[tuple[int, str, int], Tensor] = OrderedDict()

    def get(self, block: int, layer: str, level: int) -> Tensor:
        """The dense weight (rows, cols), in the cache's dtype and on its device. Callers must not change it."""
        key = (block, layer, level)
        if key not in self._weights:
            packed = self.database.read(block, layer, level).to(self.device)  # the packed weight is faster to transfer
            weight = packed.dense(self.dtype).to(self.device)
            self._weights[key] = weight
            self.kept_bytes += weight.nbytes
            while self.kept_bytes > self.limit_bytes and len(self._weights) > 1:
                self.kept_bytes -= self._weights.popitem(last=False)[1].nbytes
        self._weights.move_to_end(key)
        return self._weights[key]
