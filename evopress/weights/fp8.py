"""FP8: E4M3 numbers with a scale per row.

Source: the format float-quantized of compressed-tensors, with the strategy channel.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from evopress.weights.base import CompressedWeight, FloatPart, PackedLayer, Spec, register_reader
from evopress.weights.checks import FLOATS, checked_matrix, require
from evopress.weights.grids import storable_scale
from evopress.weights.number_formats import (
    NumberFormat,
    Scales,
    ScaleSettings,
    register_number_format,
)

FP8 = torch.float8_e4m3fn

LARGEST = torch.finfo(FP8).max
"""448"""


@dataclass(frozen=True)
class FP8Weight(CompressedWeight):
    """`codes` are float8_e4m3fn (rows, cols), and `scales` (rows, 1) are 16- or 32-bit floats."""

    has_packed_layer: ClassVar[bool] = True

    codes: Tensor
    scales: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.codes.shape[1]

    @property
    def size_bytes(self) -> int:
        return FP8_ROWS.size_bytes(*self.shape, scale_bytes=self.scales.element_size())

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.codes.float().mul_(self.scales).to(dtype)

    def float_parts(self) -> dict[str, FloatPart]:
        scales = self.scales.float()
        return {"scales": FloatPart(scales, scales)}

    def dense_with(self, values: Mapping[str, Tensor]) -> Tensor:
        return self.codes.to(values["scales"].dtype) * values["scales"]

    def with_float_parts(self, values: Mapping[str, Tensor]) -> "FP8Weight":
        scales = values["scales"].float().clamp(min=torch.finfo(torch.float32).tiny)  # storable_scale turns 0 into 1
        return replace(self, scales=storable_scale(scales, self.scales.dtype).to(self.scales.dtype))

    def packed_layer(self) -> PackedLayer:
        arguments = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"}
        tensors = {"weight": self.codes, "weight_scale": self.scales}
        on_cpu = {part: tensor.cpu().contiguous() for part, tensor in tensors.items()}
        return PackedLayer("float-quantized", arguments, on_cpu)

    def tensors(self) -> dict[str, Tensor]:
        return {"codes": self.codes, "scales": self.scales}

    def spec(self) -> Spec:
        return {"kind": "fp8"}


class _FP8Rows(NumberFormat):
    kind = FP8Weight
    bits = 8

    def size_bytes(self, rows: int, cols: int, *, scale_bytes: int) -> int:
        return rows * (cols + scale_bytes)

    def scales(self, weights: Sequence[Tensor], settings: ScaleSettings) -> list[Scales]:
        return [scales_of_largest(weight.abs().amax(1, keepdim=True), LARGEST, settings.dtype) for weight in weights]

    def round(self, x: Tensor) -> Tensor:
        return round_to_fp8(x).float()

    def pack(self, elements: Tensor, scales: Scales) -> FP8Weight:
        return FP8Weight(elements.to(FP8), scales.stored["scales"])


def round_to_fp8(x: Tensor) -> Tensor:
    """The nearest finite E4M3 number of every number, as float8_e4m3fn."""
    return x.clamp(-LARGEST, LARGEST).to(FP8)


def is_finite_fp8(codes: Tensor) -> bool:
    """Whether no E4M3 number is NaN. There are no infinite ones."""
    return not bool((codes.view(torch.uint8) & 127).eq(127).any())


def scales_of_largest(largest: Tensor, element: float, dtype: torch.dtype) -> Scales:
    """The scales with which weights of magnitude `largest` become `element`, rounded to `dtype`."""
    values = storable_scale(largest / element, dtype)
    return Scales(values, {"scales": values.to(dtype)})


FP8_ROWS = register_number_format("fp8", _FP8Rows())


@register_reader("fp8")
def _read(spec: Mapping[str, object], tensors: Mapping[str, Tensor]) -> FP8Weight:
    codes = checked_matrix(tensors, "codes", dtypes=(FP8,))
    scales = checked_matrix(tensors, "scales", dtypes=FLOATS)
    require(scales.shape == (len(codes), 1), "codes do not fit scales")
    require(is_finite_fp8(codes), "codes are not finite")
    require(bool(scales.isfinite().all()), "scales are not finite")
    return FP8Weight(codes, scales)
