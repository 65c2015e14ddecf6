"""The 32-wide block types of ggml, and the grids of their blocks.

A row is cut into blocks of 32 weights. Each block has a float16 scale d and 32 codes q. Blocks of the types that end in
_1 also have a float16 offset m. A weight is d·q, or d·q + m.

Source: ggml-common.h and ggml-quants.c of llama.cpp.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from evopress.weights.bit_planes import BitPlane
from evopress.weights.half_bytes import half

BLOCK = 32

TypeName = Literal["Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"]


@dataclass(frozen=True)
class BlockType:
    """Codes run from `low` to `high`. With `has_offset`, a block stores an offset m in addition to the scale."""

    bits: int
    low: int
    high: int
    has_offset: bool

    @property
    def num_weights(self) -> int:
        """Weights of a block."""
        return BLOCK

    @property
    def num_bytes(self) -> int:
        """Bytes of a block."""
        return 2 + 2 * self.has_offset + BLOCK * self.bits // 8

    @property
    def planes(self) -> tuple[BitPlane, ...]:
        """Where the bits of the codes are, in the order of the bytes."""
        if self.bits == 8:
            return (BitPlane(bits=8, place=0, run=BLOCK),)
        low = BitPlane(bits=4, place=0, run=16)
        return (BitPlane(bits=1, place=4, run=1), low) if self.bits == 5 else (low,)

    @property
    def bias(self) -> int:
        """The number that is added to a code before it is stored. Q8_0 stores signed bytes, so it adds 0."""
        return 0 if self.bits == 8 else -self.low


TYPES: Mapping[str, BlockType] = {
    "Q8_0": BlockType(8, -127, 127, False),
    "Q5_1": BlockType(5, 0, 31, True),
    "Q5_0": BlockType(5, -16, 15, False),
    "Q4_1": BlockType(4, 0, 15, True),
    "Q4_0": BlockType(4, -8, 7, False),
}
"""From the largest to the smallest."""


@dataclass(frozen=True)
class BlockGrid:
    """The values scale·q + offset for q = low … high; all float32, (lanes,). Scales and offsets fit float16."""

    scale: Tensor
    offset: Tensor
    low: Tensor
    high: Tensor

    @cached_property
    def zero(self) -> Tensor:
        """The zero point, 0: codes are signed."""
        return torch.zeros_like(self.scale)

    def encode(self, weight: Tensor) -> Tensor:
        """Nearest code of every weight, as float32; a scale of 0 gives code 0."""
        return (weight - self.offset).mul_(self._inverse_scale).round_().clamp_(self.low, self.high)

    def decode(self, codes: Tensor) -> Tensor:
        return (codes * self.scale).add_(self.offset)

    def leave_error(self, weight: Tensor, steps: Tensor) -> None:
        """Replace `weight` by its rounding error: the weight minus its rounded value.

        Both arguments are overwritten; `steps` becomes the codes.
        """
        torch.sub(weight, self.offset, out=steps).mul_(self._inverse_scale).round_().clamp_(self.low, self.high)
        weight.sub_(self.decode(steps))

    @cached_property
    def _inverse_scale(self) -> Tensor:
        return torch.where(self.scale == 0, 0.0, 1 / self.scale)


def fit_blocks(weight: Tensor, types: Sequence[BlockType]) -> BlockGrid:
    """The grids of one block, weight (32, lanes), for lanes ordered by type, then row.

    Without an offset, the weight of the largest magnitude gets the code `low`, which has the largest magnitude of all
    codes. This determines the sign of the scale. Q8_0 has symmetric codes: that weight gets 127 or −127, and the scale
    is positive. With an offset, the smallest weight gets the first code, and the largest weight gets the last.

    Source: the reference quantisers in ggml-quants.c.
    """
    per_type = weight.unflatten(1, (len(types), -1)).unbind(1)
    fitted = [_fit(part, kind) for part, kind in zip(per_type, types, strict=True)]
    scale, offset = (torch.cat(parts) for parts in zip(*fitted, strict=True))
    return grid_of_lanes(scale, offset, types=types)


def grid_of_lanes(scale: Tensor, offset: Tensor, *, types: Sequence[BlockType]) -> BlockGrid:
    """The grid with these scales and offsets (lanes,), for lanes ordered by type, then row."""
    rows = len(scale) // len(types)

    def lanes(values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=scale.device).repeat_interleave(rows)

    return BlockGrid(scale, offset, lanes([kind.low for kind in types]), lanes([kind.high for kind in types]))


def _fit(weight: Tensor, kind: BlockType) -> tuple[Tensor, Tensor]:
    """Scale and offset (rows,) of weight (32, rows)."""
    if kind.has_offset:
        low, high = weight.amin(0), weight.amax(0)
        return half((high - low) / kind.high), half(low)
    if kind.bits == 8:
        return half(weight.abs().amax(0) / kind.high), torch.zeros_like(weight[0])
    furthest = weight.gather(0, weight.abs().argmax(0, keepdim=True))[0]
    return half(furthest / kind.low), torch.zeros_like(weight[0])
