"""Keeps decoded levels in memory, so that a visit to a block decodes each of its levels at most once."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import partial
from itertools import islice
from typing import Generic, TypeVar

import torch
from torch import Tensor

from evopress.database.resident import PackedLevels, ResidentLevels, rooms_near

T = TypeVar("T")


class BlockCache(Generic[T]):
    """Values of blocks that are visited in turn: all values of the visited block, and of others up to `limit_bytes`.

    A visit begins when a value of another block is asked for. Beyond the limit, values of other blocks are removed.
    First go those that the last visit to their block did not use, then those of the block visited last: it is the one
    that is visited again last. Removing the least recently used would remove every value just before its next use.
    """

    def __init__(self, limit_bytes: int, size_of: Callable[[T], int]):
        self.limit_bytes = limit_bytes
        self.kept_bytes = 0
        """Bytes of the values that are now kept."""
        self._size_of = size_of
        self._blocks: OrderedDict[int, dict[Hashable, T]] = OrderedDict()  # the visited block is the last one
        self._used: set[Hashable] = set()  # in this visit
        self._unused: dict[tuple[int, Hashable], None] = {}  # in the last visit to their block

    def get(self, block: int, key: Hashable, make: Callable[[], T]) -> T:
        """The value of a key of a block, kept or newly made."""
        if block != next(reversed(self._blocks), None):
            self._begin_visit(block)
        self._used.add(key)
        self._unused.pop((block, key), None)
        values = self._blocks[block]
        if key not in values:
            values[key] = make()
            self.kept_bytes += self._size_of(values[key])
            while self.kept_bytes > self.limit_bytes and self._remove_one():
                pass
        return values[key]

    def _begin_visit(self, block: int) -> None:
        if self._blocks:
            left, values = next(reversed(self._blocks.items()))
            self._unused.update({(left, key): None for key in values if key not in self._used})
            if not values:
                del self._blocks[left]
        self._used = set()
        self._blocks.setdefault(block, {})
        self._blocks.move_to_end(block)

    def _remove_one(self) -> bool:
        """Remove the value that is needed last, and return whether there was one that may be removed."""
        if self._unused:
            block, key = next(iter(self._unused))
            del self._unused[block, key]
        elif len(self._blocks) > 1:
            block = next(islice(reversed(self._blocks), 1, None))
            key = next(reversed(self._blocks[block]))
        else:
            return False
        self.kept_bytes -= self._size_of(self._blocks[block].pop(key))
        if not self._blocks[block]:
            del self._blocks[block]
        return True


class DecodedLevels:
    """Dense weights of the levels in use.

    A visit to a block decodes each of its levels at most once. Between visits, weights of up to `limit_bytes` are kept.
    The weights of the block that is visited stay even if they are larger than the limit. `resident` are the levels of
    `database`, near the device.
    """

    def __init__(
        self,
        database: PackedLevels,
        *,
        limit_bytes: int,
        dtype: torch.dtype,
        device: torch.device,
        resident: PackedLevels | None = None,
    ):
        self.database = database
        self.dtype = dtype
        self.device = device
        self.resident: PackedLevels = resident or ResidentLevels(database, partial(rooms_near, device))
        self._weights: BlockCache[Tensor] = BlockCache(limit_bytes, lambda weight: weight.nbytes)

    @property
    def kept_bytes(self) -> int:
        """Bytes of the dense weights that are now in memory."""
        return self._weights.kept_bytes

    def get(self, block: int, layer: str, level: int) -> Tensor:
        """The dense weight (rows, cols), in the cache's dtype and on its device. Callers must not change it."""
        return self._weights.get(block, (layer, level), lambda: self._decode(block, layer, level))

    def _decode(self, block: int, layer: str, level: int) -> Tensor:
        packed = self.resident.read(block, layer, level).to(self.device)  # the packed weight is faster to transfer
        return packed.dense(self.dtype).to(self.device)
