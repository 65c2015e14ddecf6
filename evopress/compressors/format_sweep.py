"""Rounds layers to a number format by GPTQ: column by column, with the error compensated in later columns."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evopress.compressors.sweep import lanes_of, sweep
from evopress.weights.base import CompressedWeight
from evopress.weights.number_formats import NumberFormat, Scales

BLOCK = 128
"""Columns whose errors are applied to later columns at once. This affects only the speed."""


@dataclass
class ElementRounder:
    """A `ColumnCompressor` that rounds each column to elements times the scales of its group.

    `scales` are (groups, lanes), `elements` (cols, lanes) is where the results are written, and `positions` has the
    position of every swept column in both.
    """

    number_format: NumberFormat
    scales: Tensor
    elements: Tensor
    positions: Sequence[int]

    def start_block(self, start: int, W: Tensor) -> None:
        """All scales are known before the sweep."""

    def compress_column(self, column: int, w: Tensor) -> None:
        place = self.positions[column]
        elements, scale = (
            self.elements[place],
            self.scales[place // (self.number_format.group_size or len(self.elements))],
        )
        elements.copy_(self.number_format.round(w / scale))
        w.addcmul_(elements, scale, value=-1)

    def end_block(self) -> None:
        """Nothing is left to do."""


@dataclass(frozen=True)
class FormatSweep:
    """What a sweep needs to know of the inputs of layers (cols,).

    `U` is the factor of the inverse Hessian, whose rows and columns are permuted by `order`. `dead` marks the inputs
    that were always zero, in the same order.
    """

    U: Tensor
    order: Tensor
    dead: Tensor

    def to_format(
        self, number_format: NumberFormat, weights: Sequence[Tensor], scales: Sequence[Scales]
    ) -> list[CompressedWeight]:
        """The weights (rows_i, cols) rounded by GPTQ, with these scales."""
        W = lanes_of(torch.cat(list(weights))[:, self.order].masked_fill_(self.dead, 0), 1)
        by_group = torch.cat([part.values for part in scales]).t().contiguous().to(W.dtype)
        rounder = ElementRounder(number_format, by_group, torch.empty_like(W), self.order.tolist())
        sweep(W, self.U, columns=rounder, block_size=BLOCK)
        by_layer = rounder.elements.t().contiguous().split([len(weight) for weight in weights])
        return [number_format.pack(elements, part) for elements, part in zip(by_layer, scales, strict=True)]
