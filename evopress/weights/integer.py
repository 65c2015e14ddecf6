"""Weights as integer codes with a scale and a zero point per group of columns."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from evopress.weights.base import CompressedWeight, FloatPart, GgufRows, PackedLayer, Spec, register_reader
from evopress.weights.block_grids import BLOCK
from evopress.weights.checks import FLOATS, MAX_WEIGHTS, checked_integer, checked_matrix, require
from evopress.weights.ggml import GgmlWeight
from evopress.weights.grids import storable_scale
from evopress.weights.packing import num_words, pack, unpack

TYPES_OF_WIDTHS = {4: "Q4_0", 5: "Q5_0", 8: "Q8_0"}
"""The ggml type that equals a symmetric grid of this many bits, in groups of 32 with float16 scales."""

MAX_GROUP = 128
"""Engines have kernels for groups of up to this many columns, and for one group of all columns."""


@dataclass(frozen=True)
class QuantizedWeight(CompressedWeight):
    """Integer codes with a scale and a zero point per row and group of neighbouring columns: scale·(code − zero).

    `packed` is int32 (rows, words), see `packing.pack`. `scales` are (rows, groups). `zeros` are uint8 (rows, groups).
    None stands for the symmetric grid, whose zero points are all 2^(bits−1). In a file, a zero point takes `bits` bits.
    Zero points are packed along the rows, as inference engines expect.
    """

    has_packed_layer: ClassVar[bool] = True

    packed: Tensor
    scales: Tensor
    zeros: Tensor | None
    bits: int
    cols: int

    @classmethod
    def from_codes(cls, codes: Tensor, scales: Tensor, *, zeros: Tensor | None, bits: int) -> "QuantizedWeight":
        """From uint8 codes (rows, cols)."""
        return cls(pack(codes, bits), scales, zeros, bits, codes.shape[1])

    @property
    def shape(self) -> tuple[int, int]:
        return self.packed.shape[0], self.cols

    @property
    def group_size(self) -> int:
        return self.cols // self.scales.shape[1]

    @property
    def symmetric(self) -> bool:
        return self.zeros is None

    @property
    def size_bytes(self) -> int:
        rows, cols = self.shape
        return quantized_bytes(
            rows,
            cols,
            bits=self.bits,
            group_size=self.group_size,
            symmetric=self.symmetric,
            scale_bytes=self.scales.element_size(),
        )

    def codes(self) -> Tensor:
        """uint8 (rows, cols)."""
        return unpack(self.packed, self.bits, cols=self.cols)

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return self._steps().mul_(self.scales.unsqueeze(2)).flatten(1).to(dtype)

    def _steps(self) -> Tensor:
        """The codes minus their zero points, float32 (rows, groups, group_size)."""
        groups = self.codes().unflatten(1, (-1, self.group_size)).float()
        groups -= 2 ** (self.bits - 1) if self.zeros is None else self.zeros.unsqueeze(2)
        return groups

    def float_parts(self) -> dict[str, FloatPart]:
        scales = self.scales.float()
        return {"scales": FloatPart(scales, scales)}

    def dense_with(self, values: Mapping[str, Tensor]) -> Tensor:
        return (self._steps() * values["scales"].unsqueeze(2)).flatten(1)

    def with_float_parts(self, values: Mapping[str, Tensor]) -> "QuantizedWeight":
        scales = values["scales"].float().clamp(min=torch.finfo(torch.float32).tiny)  # storable_scale turns 0 into 1
        return replace(self, scales=storable_scale(scales, self.scales.dtype).to(self.scales.dtype))

    def packed_layer(self) -> PackedLayer:
        """The layout pack-quantized, with a width per layer.

        Element i of a row of `weight_packed` begins at bit i·b. Zero points are packed along the rows. Codes and zero
        points are unsigned in the file; the library subtracts 2^(b−1) from both when it reads them.

        Source: compressed-tensors 0.18 and later, `compressors/pack_quantized`. Version 0.17 and earlier padded the
        words.
        """
        tensors = {
            "weight_packed": self.packed,
            "weight_scale": self.scales,
            "weight_shape": torch.tensor(self.shape),  # int64
        }
        if self.zeros is not None:
            tensors["weight_zero_point"] = pack(self.zeros.t(), self.bits).t()  # (words, groups)
        return PackedLayer(
            "pack-quantized",
            {"num_bits": self.bits, "type": "int", "symmetric": self.symmetric, **self._strategy()},
            {part: tensor.cpu().contiguous() for part, tensor in tensors.items()},
        )

    def _strategy(self) -> dict[str, object]:
        if self.group_size == self.cols > MAX_GROUP:
            return {"strategy": "channel"}
        return {"strategy": "group", "group_size": self.group_size}

    def gguf_rows(self) -> GgufRows | None:
        type_name = TYPES_OF_WIDTHS.get(self.bits)
        has_scales = self.symmetric and self.group_size == BLOCK and self.scales.dtype == torch.float16
        if type_name is None or not has_scales:
            return None
        codes = self.codes().short() - 2 ** (self.bits - 1)
        return GgmlWeight.from_codes(codes, self.scales, offsets=self.scales, type_name=type_name).gguf_rows()

    def tensors(self) -> dict[str, Tensor]:
        tensors = {"codes": self.packed, "scales": self.scales}
        if self.zeros is not None:
            tensors["zeros"] = pack(self.zeros.t(), self.bits)  # (groups, words)
        return tensors

    def spec(self) -> Spec:
        return {"kind": "quantized", "bits": self.bits, "cols": self.cols}


def quantized_bytes(rows: int, cols: int, *, bits: int, group_size: int, symmetric: bool, scale_bytes: int = 2) -> int:
    """Bytes of a `QuantizedWeight`: codes padded to words per row, scales, zero points padded to words per group."""
    groups = cols // group_size
    zeros = 0 if symmetric else groups * num_words(rows, bits)
    return 4 * (rows * num_words(cols, bits) + zeros) + rows * groups * scale_bytes


@register_reader("quantized")
def _read(spec: Mapping[str, object], tensors: Mapping[str, Tensor]) -> QuantizedWeight:
    bits = checked_integer(spec, "bits", low=2, high=8)
    cols = checked_integer(spec, "cols", low=1, high=MAX_WEIGHTS)
    packed = checked_matrix(tensors, "codes", dtypes=(torch.int32,))
    scales = checked_matrix(tensors, "scales", dtypes=FLOATS)
    rows, groups = scales.shape
    require(packed.shape == (rows, num_words(cols, bits)), "codes do not fit scales and columns")
    require(groups > 0 and cols % groups == 0, f"{groups} groups do not divide {cols} columns")
    require(bool(scales.isfinite().all()), "scales are not finite")
    zeros = None
    if "zeros" in tensors:
        packed_zeros = checked_matrix(tensors, "zeros", dtypes=(torch.int32,))
        require(packed_zeros.shape == (groups, num_words(rows, bits)), "zero points do not fit scales")
        zeros = unpack(packed_zeros, bits, cols=rows).t().contiguous()
    return QuantizedWeight(packed, scales, zeros, bits, cols)
