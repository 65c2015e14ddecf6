"""Bits of many numbers, packed into bytes as ggml packs them."""

from dataclasses import dataclass

import torch
from torch import Tensor

WORDS = {1: torch.uint8, 4: torch.int32, 8: torch.int64, 16: torch.int64, 32: torch.int64, 64: torch.int64}
"""For each length of a run, a type that fills runs, so that several bytes are shifted at once."""


@dataclass(frozen=True)
class BitPlane:
    """`bits` bits of every number. The lowest of them is bit `place` of the number.

    In a run of `run` bytes, byte i has the bits of the numbers i, i + run, i + 2·run, …, and the first are its lowest.
    """

    bits: int
    place: int
    run: int

    @property
    def _mask(self) -> int:
        return 2**self.bits - 1

    def unpack(self, data: Tensor) -> Tensor:
        """The numbers, uint8 (…, n), of bytes (…, n·bits/8). Their other bits are 0."""
        if self.bits == 8:
            return data.contiguous()
        words = data.contiguous().unflatten(-1, (-1, self.run)).view(WORDS[self.run])
        mask = int.from_bytes(bytes([self._mask]) * words.element_size(), "little")
        parts = [(words >> shift).bitwise_and_(mask) << self.place for shift in range(0, 8, self.bits)]
        return torch.stack(parts, -2).view(torch.uint8).flatten(-3)

    def pack(self, numbers: Tensor) -> Tensor:
        """Undo `unpack`. The other bits of the numbers are ignored."""
        bits = (numbers >> self.place) & self._mask
        parts = bits.unflatten(-1, (-1, 8 // self.bits, self.run)).unbind(-2)
        packed = parts[0].clone()
        for index, part in enumerate(parts):
            packed |= part << index * self.bits
        return packed.flatten(-2)
