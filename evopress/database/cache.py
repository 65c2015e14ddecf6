"""Decoded levels in memory, so that the search does not read the disk."""

from collections import OrderedDict

import torch
from torch import Tensor

from evopress.database.store import Database


class DecodedLevels:
    """Dense weights of the levels in use, kept in memory up to `limit_bytes`, the least recently used out first."""

    def __init__(self, database: Database, *, limit_bytes: int, dtype: torch.dtype, device: torch.device):
        self.database = database
        self.limit_bytes = limit_bytes
        self.dtype = dtype
        self.device = device
        self._kept: OrderedDict[tuple[int, str, int], Tensor] = OrderedDict()
        self.kept_bytes = 0
        """What the kept weights take."""

    def get(self, block: int, layer: str, level: int) -> Tensor:
        """The dense weight (rows, cols), in the cache's dtype and on its device. Not to be changed."""
        key = (block, layer, level)
        if key not in self._kept:
            packed = self.database.read(block, layer, level).to(self.device)  # packed, it is smaller to send
            weight = packed.dense(self.dtype).to(self.device)
            self._kept[key] = weight
            self.kept_bytes += weight.nbytes
            while self.kept_bytes > self.limit_bytes and len(self._kept) > 1:
                self.kept_bytes -= self._kept.popitem(last=False)[1].nbytes
        self._kept.move_to_end(key)
        return self._kept[key]
