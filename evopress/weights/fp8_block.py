"""FP8 in blocks: E4M3 numbers with a scale per block of 128 rows and 128 columns. The last blocks may be smaller.

Source: the format float-quantized of compressed-tensors, with the strategy block.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from evopress.weights.base import PackedLayer, Spec, register_reader
from evopress.weights.checks import FLOATS, checked_matrix, require
from evopress.weights.fp8 import FP8, LARGEST, FP8Weight, is_finite_fp8, round_to_fp8, scales_of_largest
from evopress.weights.number_formats import NumberFormat, Scales, ScaleSettings, register_number_format, times_scales

BLOCK = 128


@dataclass(frozen=True)
class FP8BlockWeight(FP8Weight):
    """`codes` are float8_e4m3fn (rows, cols), and `scales` (⌈rows/128⌉, ⌈cols/128⌉) are 16- or 32-bit floats."""

    rows_of_block: ClassVar[int] = BLOCK

    @property
    def size_bytes(self) -> int:
        return FP8_BLOCK.size_bytes(*self.shape, scale_bytes=self.scales.element_size())

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        by_row = _per_row(self.scales.float(), len(self.codes))
        return times_scales(self.codes.float(), by_row, group_size=BLOCK).to(dtype)

    def dense_with(self, values: Mapping[str, Tensor]) -> Tensor:
        by_row = _per_row(values["scales"], len(self.codes))
        return times_scales(self.codes.to(by_row.dtype), by_row, group_size=BLOCK)

    def packed_layer(self) -> PackedLayer:
        by_row = super().packed_layer()
        arguments = {**by_row.weights, "strategy": "block", "block_structure": [BLOCK, BLOCK]}
        return PackedLayer(by_row.format, arguments, by_row.tensors)

    def spec(self) -> Spec:
        return {"kind": "fp8_block"}


class _FP8Blocks(NumberFormat):
    kind = FP8BlockWeight
    bits = 8
    group_size = BLOCK

    def size_bytes(self, rows: int, cols: int, *, scale_bytes: int) -> int:
        return rows * cols + scale_bytes * _num_blocks(rows) * _num_blocks(cols)

    def scales(self, weights: Sequence[Tensor], settings: ScaleSettings) -> list[Scales]:
        return [_scales_of(weight, settings.dtype) for weight in weights]

    def round(self, x: Tensor) -> Tensor:
        return round_to_fp8(x).float()

    def pack(self, elements: Tensor, scales: Scales) -> FP8BlockWeight:
        return FP8BlockWeight(elements.to(FP8), scales.stored["scales"])


def _scales_of(weight: Tensor, dtype: torch.dtype) -> Scales:
    rows, cols = weight.shape
    whole = pad(weight.abs(), (0, -cols % BLOCK, 0, -rows % BLOCK))
    largest = whole.unflatten(1, (-1, BLOCK)).unflatten(0, (-1, BLOCK)).amax((1, 3))  # (blocks of rows, of columns)
    by_block = scales_of_largest(largest, LARGEST, dtype)
    return Scales(_per_row(by_block.values, rows), by_block.stored)


def _per_row(scales: Tensor, rows: int) -> Tensor:
    """The scales of each row, (rows, blocks of columns)."""
    return scales.repeat_interleave(BLOCK, 0)[:rows]


def _num_blocks(count: int) -> int:
    return -(-count // BLOCK)


FP8_BLOCK = register_number_format("fp8_block", _FP8Blocks())


@register_reader("fp8_block")
def _read(spec: Mapping[str, object], tensors: Mapping[str, Tensor]) -> FP8BlockWeight:
    codes = checked_matrix(tensors, "codes", dtypes=(FP8,))
    scales = checked_matrix(tensors, "scales", dtypes=FLOATS)
    rows, cols = codes.shape
    require(scales.shape == (_num_blocks(rows), _num_blocks(cols)), "codes do not fit scales")
    require(is_finite_fp8(codes), "codes are not finite")
    require(bool(scales.isfinite().all()), "scales are not finite")
    return FP8BlockWeight(codes, scales)
