"""Round to nearest: the grids of GPTQ without its correction, and the levels and packing that both share."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from evopress.compressors.base import Compressor, LayerGroup, CompressedGroup
from evopress.compressors.linalg import relative_errors
from evopress.compressors.sweep import by_level, in_parts, lanes_of
from evopress.runtime.config_class import config_class
from evopress.space.budget import Metric
from evopress.space.shapes import LayerShape
from evopress.space.units import Level
from evopress.weights.base import CompressedWeight
from evopress.weights.grids import Grid, fit_grid, max_codes
from evopress.weights.integer import QuantizedWeight, quantized_bytes

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rounded:
    """Rows at all levels: codes uint8 (levels, rows, cols), scales (levels, rows, groups), zeros uint8 likewise."""

    bits: Sequence[int]
    codes: Tensor
    scales: Tensor
    zeros: Tensor


@config_class
class RTN(Compressor):
    """Rounds every weight to the nearest point of its grid, at several bit widths.

    `bits` are the widths; level 0 is the widest. A layer whose columns `group_size` does not divide takes the largest
    of 128, 64, 32, 16 below it that does. `symmetric` grids have no zero points.
    """

    metric: ClassVar[Metric] = "bits"
    needs_hessian: ClassVar[bool] = False

    bits: tuple[int, ...] = (6, 5, 4, 3, 2)
    group_size: int = Field(default=128, gt=0)
    symmetric: bool = False
    scale_dtype: Literal["float16", "bfloat16", "float32"] = "float16"

    @field_validator("bits")
    @classmethod
    def _distinct_widest_first(cls, bits: tuple[int, ...]) -> tuple[int, ...]:
        if not bits or len(set(bits)) < len(bits) or not all(2 <= width <= 8 for width in bits):
            raise ValueError(f"{list(bits)} must be different widths from 2 to 8: change compress.bits")
        return tuple(sorted(bits, reverse=True))

    @property
    def span(self) -> tuple[float, float]:
        return float(self.bits[-1]), float(self.bits[0])

    @property
    def propagate_level(self) -> int:
        """Nothing is calibrated, so nothing is propagated."""
        return 0

    def levels(self, layer: LayerShape) -> list[Level]:
        group_size = fitting_group_size(layer.cols, self.group_size)
        scale_bytes = self._scale_dtype.itemsize
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
                    scale_bytes=scale_bytes,
                ),
            )
            for width in self.bits
        ]

    def compress(self, group: LayerGroup) -> CompressedGroup:
        """Rounds to nearest; the errors are weighed by the Hessian where the group has one."""
        rows = torch.cat(group.weights)
        levels = self._pack([self._round(rows, bits) for bits in in_parts(self.bits, rows)], group)
        dense = [[level.dense for level in of_layer] for of_layer in levels]
        errors = relative_errors(list(zip(dense, group.weights, strict=True)), group.hessian)
        return CompressedGroup(levels, errors, self._clipped(group, levels))

    def _clipped(self, group: LayerGroup, levels: list[list[CompressedWeight]]) -> tuple[str, ...]:
        """A note on each layer whose grids end before its weights do."""
        limit = torch.finfo(self._scale_dtype).max
        scales = [[level.scales for level in of_layer if isinstance(level, QuantizedWeight)] for of_layer in levels]
        largest = torch.stack([torch.stack([each.max() for each in of_layer]).max() for of_layer in scales]).tolist()
        return tuple(
            f"{name}: weights are beyond the reach of {self.scale_dtype} scales and clipped; "
            f"set compress.scale_dtype=float32"
            for name, scale in zip(group.names, largest, strict=True)
            if scale == limit
        )

    def _round(self, rows: Tensor, bits: Sequence[int]) -> Rounded:
        W = lanes_of(rows, len(bits)).unflatten(0, (-1, fitting_group_size(rows.shape[1], self.group_size)))
        grid = self._fit(W, max_codes(bits, rows=len(rows), device=rows.device))  # W (groups, group_size, lanes)
        codes = Grid(grid.scale.unsqueeze(1), grid.zero.unsqueeze(1), grid.max_code).encode(W).flatten(0, 1)
        return self._rounded(bits, codes.to(torch.uint8), grid.scale, grid.zero)

    def _fit(self, W: Tensor, max_code: Tensor) -> Grid:
        return fit_grid(W, max_code, symmetric=self.symmetric, scale_dtype=self._scale_dtype)

    def _rounded(self, bits: Sequence[int], codes: Tensor, scale: Tensor, zero: Tensor) -> Rounded:
        """From codes (cols, lanes), scale and zero (groups, lanes)."""
        parts = (codes, scale.to(self._scale_dtype), zero.to(torch.uint8))
        return Rounded(bits, *(by_level(part, len(bits)) for part in parts))

    def _pack(self, parts: Sequence[Rounded], group: LayerGroup) -> list[list[CompressedWeight]]:
        """One weight per layer and level. The rows of `parts` are those of all layers."""
        num_rows = [shape.rows for shape in group.shapes]
        packed = [
            [
                QuantizedWeight.from_codes(
                    codes, scales.clone(), zeros=None if self.symmetric else zeros.clone(), bits=bits
                )
                for codes, scales, zeros in zip(*(tensor.split(num_rows) for tensor in of_level), strict=True)
            ]
            for part in parts
            for bits, *of_level in zip(part.bits, part.codes, part.scales, part.zeros, strict=True)
        ]
        return [list(of_layer) for of_layer in zip(*packed, strict=True)]

    @property
    def _scale_dtype(self) -> torch.dtype:
        return getattr(torch, self.scale_dtype)


@cache
def fitting_group_size(cols: int, group_size: int) -> int:
    """`group_size`, or the largest of 128, 64, 32, 16 below it that divides `cols`; logged once per kind of layer.

    Raises ValueError when there is none.
    """
    for size in (group_size, *(size for size in (128, 64, 32, 16) if size < group_size)):
        if cols % size == 0:
            if size != group_size:
                log.info("layers with %d inputs use groups of %d, which %d does not divide", cols, size, group_size)
            return size
    raise ValueError(
        f"compress.group_size is {group_size}, and neither it nor a smaller one of 128, 64, 32, 16 divides the {cols} "
        f"inputs of a layer: set compress.group_size to a divisor of {cols}"
    )
