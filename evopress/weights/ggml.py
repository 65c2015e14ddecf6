"""The 32-wide block types of ggml: grids, and weights in exactly the bytes that a GGUF file holds.

A row is cut into blocks of 32 weights. Each block has a float16 scale d, the types ending in _1 a float16 offset m, and
32 codes q; a weight is d·q, or d·q + m. Bytes of a block, little-endian::

    Q4_0  d, 16 bytes: q_j + 8 in the low half of byte j, q_{j+16} + 8 in the high half
    Q4_1  d, m, 16 bytes likewise, without the 8
    Q5_0  d, 4 bytes: bit j is bit 4 of q_j + 16, then the low four bits as in Q4_0
    Q5_1  d, m, 4 bytes, 16 bytes likewise, without the 16
    Q8_0  d, 32 signed bytes

Source: ggml-common.h and ggml-quants.c of llama.cpp.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from evopress.weights.base import CompressedWeight, Spec
from evopress.weights.kquants import K_TYPES, SUPERBLOCK, KWeight

BLOCK = 32

TypeName = Literal["Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"]


@dataclass(frozen=True)
class BlockType:
    """Codes run from `low` to `high`; with `has_offset`, blocks have a smallest weight m besides the scale."""

    bits: int
    low: int
    high: int
    has_offset: bool

    @property
    def num_bytes(self) -> int:
        """Of a block."""
        return 2 + 2 * self.has_offset + BLOCK * self.bits // 8

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.num_bytes / BLOCK

    @property
    def bias(self) -> int:
        """What is added to a code before it is stored; Q8_0 stores signed bytes."""
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
    """The values scale·q + offset for q = low … high; all float32, (lanes,). Scale and offset are float16 numbers."""

    scale: Tensor
    offset: Tensor
    low: Tensor
    high: Tensor

    def encode(self, weight: Tensor) -> Tensor:
        """Nearest code of every weight, as float32; a scale of 0 gives code 0."""
        inverse = torch.where(self.scale == 0, 0.0, 1 / self.scale)
        return ((weight - self.offset) * inverse).round_().clamp_(self.low, self.high)

    def decode(self, codes: Tensor) -> Tensor:
        return (codes * self.scale).add_(self.offset)


def fit_blocks(weight: Tensor, types: Sequence[BlockType]) -> BlockGrid:
    """The grids of one block, weight (32, lanes), for lanes ordered by type, then row.

    Without an offset the weight of the largest magnitude sits on the code that reaches furthest (on `low`, and the
    scale has its sign; for Q8_0 on ±127); with an offset the smallest and the largest sit on the first and the last
    code. Source: the reference quantisers in ggml-quants.c.
    """
    per_type = weight.unflatten(1, (len(types), -1)).unbind(1)
    fitted = [_fit(part, kind) for part, kind in zip(per_type, types, strict=True)]
    rows = per_type[0].shape[1]

    def lanes(values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=weight.device).repeat_interleave(rows)

    return BlockGrid(
        torch.cat([scale for scale, _ in fitted]),
        torch.cat([offset for _, offset in fitted]),
        lanes([kind.low for kind in types]),
        lanes([kind.high for kind in types]),
    )


def round_to(weight: Tensor, type_name: str) -> "GgmlWeight":
    """Round weight (rows, cols), float32, to the nearest points of a block type's grids."""
    kind = TYPES[type_name]
    blocks = weight.unflatten(1, (-1, BLOCK)).flatten(0, 1).t()  # (32, rows·blocks)
    grid = fit_blocks(blocks, [kind])
    shape = weight.shape[0], weight.shape[1] // BLOCK
    codes = grid.encode(blocks).t().reshape(weight.shape).to(torch.int8)
    return GgmlWeight.from_codes(codes, grid.scale.view(shape), grid.offset.view(shape), type_name)


def out_of_reach(weight: Tensor, stored: "GgmlWeight") -> Tensor:
    """Number of blocks of weight (rows, cols) that `stored` does not reach, as its scales are float16. Not waited for.

    The scale or the offset is then the largest number of float16, or the scale is 0 though the weights differ.
    """
    blocks = weight.unflatten(1, (-1, BLOCK))
    limit = torch.finfo(torch.float16).max
    scale, offset = stored.scales()
    spread = blocks.amax(-1) - blocks.amin(-1) if stored.kind.has_offset else blocks.abs().amax(-1)
    smallest = torch.finfo(torch.float16).smallest_normal * torch.finfo(torch.float16).eps * stored.kind.high
    beyond = (scale.abs() >= limit) | (offset.abs() >= limit)
    below = (scale == 0) & (spread > 0) & (spread < smallest)
    return (beyond | below).sum()


def _fit(weight: Tensor, kind: BlockType) -> tuple[Tensor, Tensor]:
    """Scale and offset (rows,) of weight (32, rows)."""
    if kind.has_offset:
        low, high = weight.amin(0), weight.amax(0)
        return _half((high - low) / kind.high), _half(low)
    if kind.bits == 8:
        return _half(weight.abs().amax(0) / kind.high), torch.zeros_like(weight[0])
    furthest = weight.gather(0, weight.abs().argmax(0, keepdim=True))[0]
    return _half(furthest / kind.low), torch.zeros_like(weight[0])


def _half(values: Tensor) -> Tensor:
    """Rounded to what float16 holds, large ones to its largest number."""
    limit = torch.finfo(torch.float16).max
    return values.clamp(-limit, limit).half().float()


@dataclass(frozen=True)
class GgmlWeight(CompressedWeight):
    """Rows in the bytes of a GGUF file: `data` uint8 (rows, blocks · bytes per block), of the type `type_name`."""

    data: Tensor
    type_name: str

    @classmethod
    def from_codes(cls, codes: Tensor, scales: Tensor, offsets: Tensor, type_name: str) -> "GgmlWeight":
        """From codes (rows, cols), any integer type, and scales and offsets (rows, blocks)."""
        kind = TYPES[type_name]
        stored = (codes.int() + kind.bias).to(torch.int8 if kind.bits == 8 else torch.uint8)
        blocks = stored.view(torch.uint8).unflatten(1, (-1, BLOCK))  # (rows, blocks, 32)
        parts = [_bytes_of(scales)]
        if kind.has_offset:
            parts.append(_bytes_of(offsets))
        if kind.bits == 5:
            parts.append(_fifth_bits(blocks))
        parts.append(blocks if kind.bits == 8 else (blocks[..., :16] & 15) | (blocks[..., 16:] << 4))
        return cls(torch.cat(parts, -1).flatten(1).contiguous(), type_name)

    @property
    def kind(self) -> BlockType:
        return TYPES[self.type_name]

    @property
    def shape(self) -> tuple[int, int]:
        return self.data.shape[0], self.data.shape[1] // self.kind.num_bytes * BLOCK

    @property
    def size_bytes(self) -> int:
        return self.data.nbytes

    def codes(self) -> Tensor:
        """int16 (rows, cols)."""
        kind = self.kind
        blocks = self.data.unflatten(1, (-1, kind.num_bytes))
        if kind.bits == 8:
            return blocks[..., 2:].contiguous().view(torch.int8).flatten(1).short()
        low = blocks[..., -16:]
        codes = torch.cat([low & 15, low >> 4], -1)
        if kind.bits == 5:
            places = torch.arange(8, dtype=torch.uint8, device=self.data.device)
            high = (blocks[..., -20:-16].unsqueeze(-1) >> places) & 1  # (rows, blocks, 4, 8)
            codes = codes | (high.flatten(-2) << 4)
        return codes.flatten(1).short() - kind.bias

    def scales(self) -> tuple[Tensor, Tensor]:
        """Scales and offsets, float32 (rows, blocks)."""
        blocks = self.data.unflatten(1, (-1, self.kind.num_bytes))
        scale = _halves(blocks[..., 0:2])
        return scale, _halves(blocks[..., 2:4]) if self.kind.has_offset else torch.zeros_like(scale)

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        scale, offset = self.scales()
        weight = self.codes().unflatten(1, (-1, BLOCK)).float()
        weight *= scale.unsqueeze(-1)
        if self.kind.has_offset:
            weight += offset.unsqueeze(-1)
        return weight.flatten(1).to(dtype)

    def tensors(self) -> dict[str, Tensor]:
        return {"data": self.data}

    def spec(self) -> Spec:
        return {"kind": "ggml", "type": self.type_name}


def _bytes_of(values: Tensor) -> Tensor:
    """float16 bytes of (rows, blocks) as uint8 (rows, blocks, 2)."""
    return values.half().contiguous().view(torch.uint8).unflatten(1, (-1, 2))


def _halves(data: Tensor) -> Tensor:
    """Undo `_bytes_of`, from uint8 (rows, blocks, 2) to float32 (rows, blocks)."""
    return data.contiguous().view(torch.float16).float().squeeze(-1)


def _fifth_bits(blocks: Tensor) -> Tensor:
    """Bit 4 of every code, uint8 (rows, blocks, 32) to (rows, blocks, 4)."""
    bits = (blocks >> 4).unflatten(-1, (4, 8))
    packed = bits[..., 0].clone()
    for place in range(1, 8):
        packed |= bits[..., place] << place
    return packed


def block_of(name: str) -> tuple[int, int]:
    """Weights and bytes of a block of any type."""
    return (SUPERBLOCK, K_TYPES[name][1]) if name in K_TYPES else (BLOCK, TYPES[name].num_bytes)


def bits_per_weight(name: str) -> float:
    num_weights, num_bytes = block_of(name)
    return 8 * num_bytes / num_weights


def read_ggml(spec: Mapping[str, object], tensors: Mapping[str, Tensor]) -> GgmlWeight | KWeight:
    """Undo `spec` and `tensors` of a weight of some type. Raises ValueError for what it does not write."""
    name, data = spec.get("type"), tensors.get("data")
    if not isinstance(name, str) or name not in (*TYPES, *K_TYPES):
        raise ValueError(f"unknown ggml type {name!r}: expected one of {', '.join((*TYPES, *K_TYPES))}")
    if data is None or data.ndim != 2 or data.dtype != torch.uint8 or not data.numel():
        raise ValueError("data is missing or not a matrix of bytes")
    if data.shape[1] % block_of(name)[1]:
        raise ValueError(f"rows of {data.shape[1]} bytes are not whole blocks of {name}")
    return KWeight(data, name) if name in K_TYPES else GgmlWeight(data, name)
