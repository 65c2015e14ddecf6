"""NVFP4: E2M1 numbers with an E4M3 scale per group of 16 columns, and a float32 divisor of all scales of a layer.

::

    w = element · scale / divisor        divisor = 6 · 448 / max|w|

The largest scale is then 448, the largest E4M3 number. Layers that read the same input have one divisor, because
engines run them as one layer, and keep only the largest of their divisors.

With four over six, the largest weight of a group becomes 4 instead of 6 where that loses less. Between 4 and 6 there is
no other number, so weights near 5/6 of the largest one have large errors. Scales are then up to 6/4 larger, so that the
divisor leaves room for them: 6 · 256 / max|w|.

Source: the format nvfp4-pack-quantized of compressed-tensors; arXiv 2512.02010 (Four Over Six).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from evopress.weights.base import CompressedWeight, PackedLayer, Spec, register_reader
from evopress.weights.checks import checked_matrix, checked_vector, require
from evopress.weights.fp4 import LARGEST, pack_fp4, round_to_fp4, unpack_fp4
from evopress.weights.fp8 import FP8, is_finite_fp8
from evopress.weights.number_formats import (
    NumberFormat,
    Scales,
    ScaleSettings,
    largest_of_groups,
    register_number_format,
    times_scales,
)

GROUP = 16

SMALLEST_SCALE = 2.0**-9
"""The smallest positive E4M3 number."""


@dataclass(frozen=True)
class NVFP4Weight(CompressedWeight):
    """`packed` is uint8 (rows, cols / 2), `scales` float8_e4m3fn (rows, groups), and `divisor` float32 (1,)."""

    has_packed_layer: ClassVar[bool] = True
    decoded_in: ClassVar[torch.dtype | None] = torch.bfloat16

    packed: Tensor
    scales: Tensor
    divisor: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.packed.shape[0], 2 * self.packed.shape[1]

    @property
    def size_bytes(self) -> int:
        return NVFP4.size_bytes(*self.shape, scale_bytes=1)

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        values = self.scales.float() / self.divisor
        return times_scales(unpack_fp4(self.packed), values, group_size=GROUP).to(dtype)

    def packed_layer(self) -> PackedLayer:
        arguments = {
            "num_bits": 4,
            "type": "float",
            "symmetric": True,
            "strategy": "tensor_group",
            "group_size": GROUP,
            "scale_dtype": "torch.float8_e4m3fn",
            "zp_dtype": "torch.float8_e4m3fn",
        }
        tensors = {
            "weight_packed": self.packed,
            "weight_scale": self.scales,
            "weight_global_scale": self.divisor,
        }
        on_cpu = {part: tensor.cpu().contiguous() for part, tensor in tensors.items()}
        return PackedLayer("nvfp4-pack-quantized", arguments, on_cpu)

    def tensors(self) -> dict[str, Tensor]:
        return {"packed": self.packed, "scales": self.scales, "divisor": self.divisor}

    def spec(self) -> Spec:
        return {"kind": "nvfp4"}


class _NVFP4(NumberFormat):
    kind = NVFP4Weight
    bits = 4.5
    group_size = GROUP

    def fits(self, cols: int) -> bool:
        return cols % GROUP == 0

    def size_bytes(self, rows: int, cols: int, *, scale_bytes: int) -> int:
        return rows * (cols // 2 + cols // GROUP) + 4

    def scales(self, weights: Sequence[Tensor], settings: ScaleSettings) -> list[Scales]:
        largest = torch.stack([weight.abs().amax() for weight in weights]).amax().clamp(min=1e-30)
        divisor = (LARGEST * (256 if settings.four_over_six else 448) / largest).float().reshape(1)
        return [_scales_of(weight, divisor.clone(), settings) for weight in weights]  # a file shares no tensors

    def round(self, x: Tensor) -> Tensor:
        return round_to_fp4(x)

    def pack(self, elements: Tensor, scales: Scales) -> NVFP4Weight:
        return NVFP4Weight(pack_fp4(elements), scales.stored["scales"], scales.stored["divisor"])


def _scales_of(weight: Tensor, divisor: Tensor, settings: ScaleSettings) -> Scales:
    largest = largest_of_groups(weight, GROUP)
    stored = _to_scale(largest / LARGEST * divisor)
    if settings.four_over_six:
        to_four = _to_scale(largest / 4 * divisor)
        errors = [_squared_errors(weight, scales.float() / divisor, settings.power) for scales in (stored, to_four)]
        is_better = errors[1] < errors[0]
        stored = torch.where(is_better, to_four.float(), stored.float()).to(FP8)
    return Scales(stored.float() / divisor, {"scales": stored, "divisor": divisor})


def _to_scale(scale: Tensor) -> Tensor:
    return scale.clamp(SMALLEST_SCALE, torch.finfo(FP8).max).to(FP8)


def _squared_errors(weight: Tensor, values: Tensor, power: Tensor) -> Tensor:
    """Σ power·(w − ŵ)² of every group, (rows, groups), where weight (rows, cols) is rounded with scales `values`."""
    groups = weight.unflatten(1, (-1, GROUP))
    rounded = round_to_fp4(groups / values.unsqueeze(2)).mul_(values.unsqueeze(2))
    weights = power.to(weight) / power.amax().clamp(min=torch.finfo(power.dtype).tiny)
    return rounded.sub_(groups).square_().mul_(weights.unflatten(0, (-1, GROUP))).sum(2)


NVFP4 = register_number_format("nvfp4", _NVFP4())


@register_reader("nvfp4")
def _read(spec: Mapping[str, object], tensors: Mapping[str, Tensor]) -> NVFP4Weight:
    packed = checked_matrix(tensors, "packed", dtypes=(torch.uint8,))
    scales = checked_matrix(tensors, "scales", dtypes=(FP8,))
    divisor = checked_vector(tensors, "divisor", dtype=torch.float32, length=1)
    rows, groups = scales.shape
    require(packed.shape == (rows, groups * GROUP // 2), "codes do not fit scales")
    require(is_finite_fp8(scales), "scales are not finite")
    require(bool((divisor > 0).all() and divisor.isfinite().all()), "the divisor is not positive")
    return NVFP4Weight(packed, scales, divisor)
