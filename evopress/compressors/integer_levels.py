"""What round-to-nearest and GPTQ have in common: settings, levels, grids and packing."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from evopress.compressors.base import Compressor, LayerGroup
from evopress.compressors.range_search import search_grid
from evopress.compressors.sweep import by_level
from evopress.runtime.config_class import config_class
from evopress.space.budget import Metric
from evopress.space.shapes import LayerShape
from evopress.space.units import Level
from evopress.weights.base import CompressedWeight
from evopress.weights.grids import Grid, fit_grid
from evopress.weights.integer import QuantizedWeight, quantized_bytes

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RoundedRows:
    """Rows at all levels: codes uint8 (levels, rows, cols); scales and uint8 zeros, both (levels, rows, groups)."""

    bits: Sequence[int]
    codes: Tensor
    scales: Tensor
    zeros: Tensor


@config_class
class IntegerLevels(Compressor):
    """Levels that are bit widths of integer codes, with a scale per row and group of columns.

    `bits` are the widths; level 0 is the widest. If `group_size` does not divide the columns of a layer, the layer uses
    the largest smaller size of 128, 64, 32 and 16 that does. `symmetric` grids have no zero points. `range` decides
    where the grids end: `minmax` at the smallest and the largest weight, `mse` where the squared error is least, and
    `hessian` where the squared error is least if each column is weighted by the power of its inputs, which is the
    diagonal of the Hessian.
    """

    metric: ClassVar[Metric] = "bits"
    levels_key: ClassVar[str] = "compress.bits"

    bits: tuple[int, ...] = (6, 5, 4, 3, 2)
    group_size: int = Field(default=128, gt=0)
    symmetric: bool = False
    range: Literal["minmax", "mse", "hessian"] = "hessian"
    scale_dtype: Literal["float16", "bfloat16", "float32"] = "float16"

    @field_validator("bits")
    @classmethod
    def _distinct_widest_first(cls, bits: tuple[int, ...]) -> tuple[int, ...]:
        if not bits or len(set(bits)) < len(bits) or not all(2 <= width <= 8 for width in bits):
            raise ValueError(f"{list(bits)} must be different widths from 2 to 8: change compress.bits")
        return tuple(sorted(bits, reverse=True))

    @property
    def weight_kinds(self) -> frozenset[type[CompressedWeight]]:
        return frozenset({QuantizedWeight})

    @property
    def scale_type(self) -> torch.dtype:
        return self._torch_scale_dtype

    @property
    def zero_point_bits(self) -> tuple[int, ...]:
        return () if self.symmetric else self.bits

    @property
    def span(self) -> tuple[float, float]:
        return float(self.bits[-1]), float(self.bits[0])

    def levels(self, layer: LayerShape) -> list[Level]:
        group_size = fitting_group_size(layer.cols, self.group_size)
        return [
            Level(
                label=f"{width}bit",
                value=width,
                cost=width * layer.num_weights,
                size_bytes=quantized_bytes(
                    layer.rows,
                    layer.cols,
                    bits=width,
                    group_size=group_size,
                    symmetric=self.symmetric,
                    scale_bytes=self._torch_scale_dtype.itemsize,
                ),
            )
            for width in self.bits
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
        by_width = [
            [
                QuantizedWeight.from_codes(
                    codes, scales.clone(), zeros=None if self.symmetric else zeros.clone(), bits=bits
                )
                for codes, scales, zeros in zip(*(tensor.split(num_rows) for tensor in tensors), strict=True)
            ]
            for part in parts
            for bits, *tensors in zip(part.bits, part.codes, part.scales, part.zeros, strict=True)
        ]
        return [list(layer_levels) for layer_levels in zip(*by_width, strict=True)]

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


@cache
def fitting_group_size(cols: int, group_size: int) -> int:
    """`group_size` if it divides `cols`, or else the largest smaller size of 128, 64, 32 and 16 that does.

    A smaller size is logged once for each number of columns.

    Raises:
        ValueError: None of them divides `cols`.
    """
    for size in (group_size, *(size for size in (128, 64, 32, 16) if size < group_size)):
        if cols % size == 0:
            if size != group_size:
                log.info("layers with %d inputs use groups of %d, because %d is not a divisor", cols, size, group_size)
            return size
    raise ValueError(
        f"compress.group_size is {group_size}, but neither it nor a smaller size of 128, 64, 32 and 16 divides the "
        f"{cols} inputs of a layer: set compress.group_size to a divisor of {cols}"
    )
