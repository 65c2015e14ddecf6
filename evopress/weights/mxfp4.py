"""MXFP4: E2M1 numbers with a power of two per group of 32 columns, stored as E8M0: the exponent plus 127 in a byte.

The largest weight of a group becomes a number from 3.5 to 7, of which 6 and more are stored as 6.

Source: OCP Microscaling Formats (MX) Specification 1.0; the format mxfp4-pack-quantized of compressed-tensors, whose
choice of exponents this is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from evopress.weights.base import CompressedWeight, PackedLayer, Spec, register_reader
from evopress.weights.checks import checked_matrix, require
from evopress.weights.fp4 import pack_fp4, round_to_fp4, unpack_fp4
from evopress.weights.number_formats import (
    NumberFormat,
    Scales,
    ScaleSettings,
    largest_of_groups,
    register_number_format,
    times_scales,
)

GROUP = 32

BIAS = 127

MAX_EXPONENT = 254
"""The stored exponent 255 stands for NaN."""


@dataclass(frozen=True)
class MXFP4Weight(CompressedWeight):
    """`packed` is uint8 (rows, cols / 2), and `exponents` uint8 (rows, groups)."""

    has_packed_layer: ClassVar[bool] = True
    decoded_in: ClassVar[torch.dtype | None] = torch.bfloat16

    packed: Tensor
    exponents: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.packed.shape[0], 2 * self.packed.shape[1]

    @property
    def size_bytes(self) -> int:
        return MXFP4.size_bytes(*self.shape, scale_bytes=1)

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return times_scales(unpack_fp4(self.packed), _powers(self.exponents), group_size=GROUP).to(dtype)

    def packed_layer(self) -> PackedLayer:
        arguments = {
            "num_bits": 4,
            "type": "float",
            "symmetric": True,
            "strategy": "group",
            "group_size": GROUP,
            "scale_dtype": "torch.uint8",
            "zp_dtype": "torch.uint8",
        }
        tensors = {"weight_packed": self.packed, "weight_scale": self.exponents}
        on_cpu = {part: tensor.cpu().contiguous() for part, tensor in tensors.items()}
        return PackedLayer("mxfp4-pack-quantized", arguments, on_cpu)

    def tensors(self) -> dict[str, Tensor]:
        return {"packed": self.packed, "exponents": self.exponents}

    def spec(self) -> Spec:
        return {"kind": "mxfp4"}


class _MXFP4(NumberFormat):
    kind = MXFP4Weight
    bits = 4.25
    group_size = GROUP

    def fits(self, cols: int) -> bool:
        return cols % GROUP == 0

    def size_bytes(self, rows: int, cols: int, *, scale_bytes: int) -> int:
        return rows * (cols // 2 + cols // GROUP)

    def scales(self, weights: Sequence[Tensor], settings: ScaleSettings) -> list[Scales]:
        return [_scales_of(weight) for weight in weights]

    def round(self, x: Tensor) -> Tensor:
        return round_to_fp4(x)

    def pack(self, elements: Tensor, scales: Scales) -> MXFP4Weight:
        return MXFP4Weight(pack_fp4(elements), scales.stored["exponents"])


def _scales_of(weight: Tensor) -> Scales:
    mantissa, exponent = torch.frexp(largest_of_groups(weight, GROUP))  # mantissas from 0.5 to 1
    exponent = exponent - 3 + (mantissa >= 0.875).int()  # the largest weight is now from 3.5 to 7
    stored = (exponent + BIAS).clamp(1, MAX_EXPONENT).to(torch.uint8)
    return Scales(_powers(stored), {"exponents": stored})


def _powers(exponents: Tensor) -> Tensor:
    """2^(exponent − 127) as float32, by the bits of a float. The exponent 0 stands for a subnormal number."""
    powers = (exponents.int() << 23).view(torch.float32)
    return torch.where(exponents == 0, 2.0**-BIAS, powers)


MXFP4 = register_number_format("mxfp4", _MXFP4())


@register_reader("mxfp4")
def _read(spec: Mapping[str, object], tensors: Mapping[str, Tensor]) -> MXFP4Weight:
    packed = checked_matrix(tensors, "packed", dtypes=(torch.uint8,))
    exponents = checked_matrix(tensors, "exponents", dtypes=(torch.uint8,))
    rows, groups = exponents.shape
    require(packed.shape == (rows, groups * GROUP // 2), "codes do not fit exponents")
    require(int(exponents.max()) <= MAX_EXPONENT, "exponents are not finite")
    return MXFP4Weight(packed, exponents)
