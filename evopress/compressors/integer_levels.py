"""What round-to-nearest and GPTQ have in common: settings, levels, grids and packing."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from evopress.compressors.base import Compressor, LayerGroup
from evopress.compressors.group_sizes import IntegerFormat, group_sizes_of
from evopress.compressors.range_search import search_grid
from evopress.compressors.sweep import by_level, split_levels
from evopress.runtime.config_class import config_class
from evopress.space.budget import Metric
from evopress.space.shapes import LayerShape
from evopress.space.units import Level
from evopress.weights.base import CompressedWeight
from evopress.weights.grids import Grid, fit_grid
from evopress.weights.integer import QuantizedWeight, quantized_bytes


@dataclass(frozen=True)
class RoundedRows:
    """Rows at several widths in groups of one size.

    Codes are uint8 (widths, rows, cols), and scales and uint8 zeros are both (widths, rows, groups).
    """

    bits: Sequence[int]
    codes: Tensor
    scales: Tensor
    zeros: Tensor

    @property
    def formats(self) -> list[IntegerFormat]:
        group_size = self.codes.shape[2] // self.scales.shape[2]
        return [IntegerFormat(bits, group_size) for bits in self.bits]


@config_class
class IntegerLevels(Compressor):
    """Levels that are bit widths of integer codes, with a scale per row and group of columns.

    `bits` are the widths. If `group_size` does not divide the columns of a layer, the layer uses the largest smaller
    size of 128, 64, 32 and 16 that does. `group_size` may also be a list of sizes, which must divide the columns of all
    layers. Then there is a level for each width and each size. Level 0 takes the most bytes. `symmetric` grids have no
    zero points. `range` decides where the grids end: `minmax` at the smallest and the largest weight, `mse` where the
    squared error is least, and `hessian` where the squared error is least if each column is weighted by the power of
    its inputs, which is the diagonal of the Hessian.
    """

    metric: ClassVar[Metric] = "bits"
    levels_key: ClassVar[str] = "compress.bits"

    bits: tuple[int, ...] = (6, 5, 4, 3, 2)
    group_size: Annotated[int, Field(gt=0)] | tuple[Annotated[int, Field(gt=0)], ...] = 128
    symmetric: bool = False
    range: Literal["minmax", "mse", "hessian"] = "hessian"
    scale_dtype: Literal["float16", "bfloat16", "float32"] = "float16"

    @field_validator("bits")
    @classmethod
    def _distinct_widest_first(cls, bits: tuple[int, ...]) -> tuple[int, ...]:
        if not bits or len(set(bits)) < len(bits) or not all(2 <= width <= 8 for width in bits):
            raise ValueError(f"{list(bits)} must be different widths from 2 to 8: change compress.bits")
        return tuple(sorted(bits, reverse=True))

    @field_validator("group_size")
    @classmethod
    def _distinct_smallest_first(cls, sizes: int | tuple[int, ...]) -> int | tuple[int, ...]:
        if isinstance(sizes, int):
            return sizes
        if not sizes or len(set(sizes)) < len(sizes):
            raise ValueError(f"{list(sizes)} must be different sizes: change compress.group_size")
        return tuple(sorted(sizes)) if len(sizes) > 1 else sizes[0]

    @property
    def needs_size_budget(self) -> bool:
        return isinstance(self.group_size, tuple)

    @property
    def weight_kinds(self) -> frozenset[type[CompressedWeight]]:
        return frozenset({QuantizedWeight})

    @property
    def scale_type(self) -> torch.dtype:
        return self._torch_scale_dtype

    @property
    def code_bits(self) -> tuple[int, ...]:
        return self.bits

    @property
    def zero_point_bits(self) -> tuple[int, ...]:
        return () if self.symmetric else self.bits

    @property
    def span(self) -> tuple[float, float]:
        return float(self.bits[-1]), float(self.bits[0])

    def formats(self, cols: int) -> list[IntegerFormat]:
        """The widths and group sizes of the levels of a layer with `cols` inputs, in the order of the levels.

        Raises:
            ValueError: No group size fits `cols`, or one of several does not.
        """
        formats = [IntegerFormat(bits, size) for bits in self.bits for size in group_sizes_of(cols, self.group_size)]
        return sorted(formats, key=self._bits_per_weight, reverse=True)

    def passes(self, rows: Tensor) -> list[tuple[Sequence[int], int]]:
        """For each pass over `rows` (rows, cols), the widths that it solves and their group size."""
        sizes = group_sizes_of(rows.shape[1], self.group_size)
        return [(bits, size) for size in sizes for bits in split_levels(self.bits, rows)]

    def _bits_per_weight(self, of: IntegerFormat) -> Fraction:
        """With scales and zero points."""
        zero_bits = 0 if self.symmetric else of.bits
        return of.bits + Fraction(8 * self._torch_scale_dtype.itemsize + zero_bits, of.group_size)

    def levels(self, layer: LayerShape) -> list[Level]:
        return [
            Level(
                label=f"{each.bits}bit" + (f"/{each.group_size}" if self.needs_size_budget else ""),
                value=each.bits,
                cost=each.bits * layer.num_weights,
                size_bytes=quantized_bytes(
                    layer.rows,
                    layer.cols,
                    bits=each.bits,
                    group_size=each.group_size,
                    symmetric=self.symmetric,
                    scale_bytes=self._torch_scale_dtype.itemsize,
                ),
            )
            for each in self.formats(layer.cols)
        ]

    def fit(self, W: Tensor, power: Tensor, *, max_code: Tensor) -> Grid:
        """The grids of W (…, group_size, lanes), whose columns have inputs of `power` (…, group_size).

        `max_code` is 2^b − 1 per lane, (lanes,).
        """
        if self.range == "minmax":
            return fit_grid(W, max_code, symmetric=self.symmetric, scale_dtype=self._torch_scale_dtype)
        weights = power if self.range == "hessian" else torch.ones_like(power)
        return search_grid(W, max_code, power=weights, symmetric=self.symmetric, scale_dtype=self._torch_scale_dtype)

    def rounded(self, bits: Sequence[int], codes: Tensor, *, scale: Tensor, zero: Tensor) -> RoundedRows:
        """Split codes (cols, lanes), scales (groups, lanes) and zero points (groups, lanes) by level."""
        parts = (codes, scale.to(self._torch_scale_dtype), zero.to(torch.uint8))
        return RoundedRows(bits, *(by_level(part, len(bits)) for part in parts))

    def packed(self, parts: Sequence[RoundedRows], num_rows: Sequence[int]) -> list[list[CompressedWeight]]:
        """The weights [layer][level] of a group whose layers have `num_rows` rows. Each part has some of the levels."""
        by_format = {
            each: [
                QuantizedWeight.from_codes(
                    codes, scales.clone(), zeros=None if self.symmetric else zeros.clone(), bits=each.bits
                )
                for codes, scales, zeros in zip(*(tensor.split(num_rows) for tensor in tensors), strict=True)
            ]
            for part in parts
            for each, *tensors in zip(part.formats, part.codes, part.scales, part.zeros, strict=True)
        }
        cols = parts[0].codes.shape[2]
        return [list(levels) for levels in zip(*(by_format[each] for each in self.formats(cols)), strict=True)]

    def clipping_notes(self, group: LayerGroup, levels: list[list[CompressedWeight]]) -> tuple[str, ...]:
        """A note on each layer whose grids do not reach its largest weights."""
        limit = torch.finfo(self._torch_scale_dtype).max
        largest = [
            torch.stack([level.scales.max() for level in layer_levels if isinstance(level, QuantizedWeight)]).max()
            for layer_levels in levels
        ]
        return tuple(
            f"{name}: weights exceed the range of {self.scale_dtype} scales and are clipped; "
            f"set compress.scale_dtype=float32"
            for name, scale in zip(group.names, torch.stack(largest).tolist(), strict=True)
            if scale == limit
        )

    @property
    def _torch_scale_dtype(self) -> torch.dtype:
        return getattr(torch, self.scale_dtype)
