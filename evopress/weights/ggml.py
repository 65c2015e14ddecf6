"""Weights in the 32-wide block types of ggml, in exactly the bytes that a GGUF file holds.

Bytes of a block, little-endian::

    Q4_0  d, 16 bytes: q_j + 8 in the low half of byte j, q_{j+16} + 8 in the high half
    Q4_1  d, m, 16 bytes likewise, without the 8
    Q5_0  d, 4 bytes: bit j is bit 4 of q_j + 16, then the low four bits as in Q4_0
    Q5_1  d, m, 4 bytes, 16 bytes likewise, without the 16
    Q8_0  d, 32 signed bytes

Source: ggml-common.h and ggml-quants.c of llama.cpp.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from evopress.weights.base import FloatPart, register_reader
from evopress.weights.block_grids import BLOCK, TYPES, BlockType, fit_blocks
from evopress.weights.ggml_rows import BlockLayout, GgmlRows
from evopress.weights.half_bytes import bytes_to_halves, half, halves_to_bytes
from evopress.weights.i_types import I_TYPES
from evopress.weights.iquants import IWeight
from evopress.weights.k_types import K_TYPES
from evopress.weights.kquants import KWeight


@dataclass(frozen=True)
class GgmlWeight(GgmlRows):
    """Rows of a type with blocks of 32 weights, Q4_0 to Q8_0."""

    @classmethod
    def from_codes(cls, codes: Tensor, scales: Tensor, *, offsets: Tensor, type_name: str) -> "GgmlWeight":
        """From codes (rows, cols) of any integer type, and scales and offsets (rows, blocks).

        Types without offsets ignore `offsets`.
        """
        kind = TYPES[type_name]
        stored = (codes.int() + kind.bias).to(torch.int8 if kind.bits == 8 else torch.uint8)
        blocks = stored.view(torch.uint8).unflatten(1, (-1, BLOCK))  # (rows, blocks, 32)
        halves = [scales, offsets] if kind.has_offset else [scales]
        parts = [*map(halves_to_bytes, halves), *(plane.pack(blocks) for plane in kind.planes)]
        return cls(torch.cat(parts, -1).flatten(1).contiguous(), type_name)

    @property
    def kind(self) -> BlockType:
        return TYPES[self.type_name]

    def codes(self) -> Tensor:
        """int8 (rows, cols)."""
        kind = self.kind
        blocks = self.data.unflatten(1, (-1, kind.num_bytes))[..., 2 + 2 * kind.has_offset :]
        parts = blocks.split([BLOCK * plane.bits // 8 for plane in kind.planes], -1)
        stored = [plane.unpack(part) for plane, part in zip(kind.planes, parts, strict=True)]
        codes = stored[0] if len(stored) == 1 else stored[0].bitwise_or_(stored[1])
        return codes.view(torch.int8).flatten(1) - kind.bias

    def scales(self) -> tuple[Tensor, Tensor]:
        """Scales and offsets, float32 (rows, blocks)."""
        blocks = self.data.unflatten(1, (-1, self.kind.num_bytes))
        scale = bytes_to_halves(blocks[..., 0:2])
        return scale, bytes_to_halves(blocks[..., 2:4]) if self.kind.has_offset else torch.zeros_like(scale)

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        scale, offset = self.scales()
        weight = self.codes().unflatten(1, (-1, BLOCK)).float()
        weight *= scale.unsqueeze(-1)
        if self.kind.has_offset:
            weight += offset.unsqueeze(-1)
        return weight.flatten(1).to(dtype)

    def float_parts(self) -> dict[str, FloatPart]:
        """The scales, and the offsets of types that have them. The unit of an offset is the range of its block."""
        scale, offset = self.scales()
        offsets = {"offsets": FloatPart(offset, scale * self.kind.high)} if self.kind.has_offset else {}
        return {"scales": FloatPart(scale, scale), **offsets}

    def dense_with(self, values: Mapping[str, Tensor]) -> Tensor:
        codes = self.codes().unflatten(1, (-1, BLOCK)).to(values["scales"].dtype)
        weight = codes * values["scales"].unsqueeze(-1)
        return (weight + values["offsets"].unsqueeze(-1) if self.kind.has_offset else weight).flatten(1)

    def with_float_parts(self, values: Mapping[str, Tensor]) -> "GgmlWeight":
        scales = half(values["scales"].float())
        offsets = half(values["offsets"].float()) if self.kind.has_offset else scales
        return GgmlWeight.from_codes(self.codes(), scales, offsets=offsets, type_name=self.type_name)


def round_to(weight: Tensor, type_name: str) -> GgmlWeight:
    """Round weight (rows, cols), float32, to the nearest values of the grids of a block type."""
    kind = TYPES[type_name]
    blocks = weight.unflatten(1, (-1, BLOCK)).flatten(0, 1).t()  # (32, rows·blocks)
    grid = fit_blocks(blocks, [kind])
    shape = weight.shape[0], weight.shape[1] // BLOCK
    codes = grid.encode(blocks).t().reshape(weight.shape).to(torch.int8)
    return GgmlWeight.from_codes(codes, grid.scale.view(shape), offsets=grid.offset.view(shape), type_name=type_name)


def num_clipped_blocks(weight: Tensor, stored: GgmlWeight) -> Tensor:
    """Number of blocks of weight (rows, cols) that `stored` clips or flattens because its scales are float16.

    The scale or the offset of such a block is the largest number of float16, or the scale is 0 although the weights
    differ. The result is a tensor of one element, which a GPU may still be computing.
    """
    blocks = weight.unflatten(1, (-1, BLOCK))
    limit = torch.finfo(torch.float16).max
    scale, offset = stored.scales()
    spread = blocks.amax(-1) - blocks.amin(-1) if stored.kind.has_offset else blocks.abs().amax(-1)
    smallest = torch.finfo(torch.float16).smallest_normal * torch.finfo(torch.float16).eps * stored.kind.high
    beyond = (scale.abs() >= limit) | (offset.abs() >= limit)
    below = (scale == 0) & (spread > 0) & (spread < smallest)
    return (beyond | below).sum()


_LAYOUTS: Mapping[str, BlockLayout] = {**TYPES, **K_TYPES, **I_TYPES}

GGML_TYPES = tuple(_LAYOUTS)
"""All types by name."""


def kind_of(name: str) -> type[GgmlWeight | KWeight | IWeight]:
    """The kind of the weights of a type."""
    return KWeight if name in K_TYPES else IWeight if name in I_TYPES else GgmlWeight


def block_of(name: str) -> tuple[int, int]:
    """Weights and bytes of a block of any type, K types and I types included."""
    layout = _LAYOUTS[name]
    return layout.num_weights, layout.num_bytes


def bits_per_weight(name: str) -> float:
    num_weights, num_bytes = block_of(name)
    return 8 * num_bytes / num_weights


@register_reader("ggml")
def read_ggml(spec: Mapping[str, object], tensors: Mapping[str, Tensor]) -> GgmlWeight | KWeight | IWeight:
    """Read a weight of any ggml type, K types and I types included."""
    name, data = spec.get("type"), tensors.get("data")
    if not isinstance(name, str) or name not in GGML_TYPES:
        raise ValueError(f"unknown ggml type {name!r}: expected one of {', '.join(GGML_TYPES)}")
    if data is None or data.ndim != 2 or data.dtype != torch.uint8 or not data.numel():
        raise ValueError("data is missing or not a matrix of bytes")
    if data.shape[1] % block_of(name)[1]:
        raise ValueError(f"rows of {data.shape[1]} bytes are not whole blocks of {name}")
    return kind_of(name)(data, name)
