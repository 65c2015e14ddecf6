"""INT8: integers from −127 to 127 with a scale per row, stored as a `QuantizedWeight` with one group of columns."""

from collections.abc import Sequence

import torch
from torch import Tensor

from evopress.weights.fp8 import scales_of_largest
from evopress.weights.integer import QuantizedWeight, quantized_bytes
from evopress.weights.number_formats import NumberFormat, Scales, ScaleSettings, register_number_format

LARGEST = 127


class _INT8(NumberFormat):
    kind = QuantizedWeight
    bits = 8
    code_bits = 8

    def size_bytes(self, rows: int, cols: int, *, scale_bytes: int) -> int:
        return quantized_bytes(rows, cols, bits=8, group_size=cols, symmetric=True, scale_bytes=scale_bytes)

    def scales(self, weights: Sequence[Tensor], settings: ScaleSettings) -> list[Scales]:
        return [scales_of_largest(weight.abs().amax(1, keepdim=True), LARGEST, settings.dtype) for weight in weights]

    def round(self, x: Tensor) -> Tensor:
        return x.round().clamp_(-LARGEST, LARGEST)

    def pack(self, elements: Tensor, scales: Scales) -> QuantizedWeight:
        codes = (elements + 128).to(torch.uint8)
        return QuantizedWeight.from_codes(codes, scales.stored["scales"], zeros=None, bits=8)


INT8 = register_number_format("int8", _INT8())
