"""GPTQ: round column by column, and let the columns to come make up for the error."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from evopress.compressors.base import LayerGroup, CompressedGroup
from evopress.compressors.linalg import inverse_factor
from evopress.compressors.rtn import RTN, Rounded, fitting_group_size
from evopress.compressors.sweep import by_level, in_parts, lanes_of, sweep, undamped_errors
from evopress.runtime.config_class import config_class
from evopress.weights.grids import Grid, max_codes


@config_class
class GPTQ(RTN):
    """Quantises with the inverse Hessian's correction, all widths and all layers of a group in one sweep.

    `damp` is the damping as a share of the Hessian's mean diagonal. `propagate_bits` is the width the next block is
    calibrated on; where `bits` does not hold it, the nearest wider one, else the widest. `act_order` settles columns by
    falling power of their input; groups stay contiguous columns and their grids are then fitted beforehand, to the
    original weights, so that codes are stored in the original order and engines load them.

    Source: arXiv 2210.17323, Algorithm 1. Unlike there, each group's grid is fitted when *all* earlier errors are
    applied to the whole group, so the result does not depend on the lazy block size.
    """

    needs_hessian: ClassVar[bool] = True

    act_order: bool = False
    damp: float = Field(default=0.01, gt=0)
    propagate_bits: int = Field(default=3, ge=2, le=8)

    @property
    def propagate_level(self) -> int:
        return max((level for level, width in enumerate(self.bits) if width >= self.propagate_bits), default=0)

    def compress(self, group: LayerGroup) -> CompressedGroup:
        assert group.hessian is not None, "the group has no Hessian"
        H, names = group.hessian, ", ".join(group.names)
        order = torch.arange(len(H), device=H.device)
        if self.act_order:
            order = H.diagonal().argsort(descending=True, stable=True)
        factor = inverse_factor(H[order][:, order], damp=self.damp)
        notes = tuple(f"{names}: {note}" for note in factor.notes)
        if factor.U is None:
            rounded = super().compress(group)
            return CompressedGroup(rounded.levels, rounded.errors, (*notes, f"{names}: rounded to nearest instead"))
        rows = torch.cat(group.weights)[:, order].masked_fill_(factor.dead, 0)
        parts = [self._solve(rows, bits, U=factor.U, order=order) for bits in in_parts(self.bits, rows)]
        levels = self._pack([part for part, _ in parts], group)
        losses = torch.cat([loss for _, loss in parts]).split([shape.rows for shape in group.shapes], 1)
        dense = [[level.dense for level in of_layer] for of_layer in levels]
        layers = list(zip(dense, group.weights, [loss.sum(1) for loss in losses], strict=True))
        errors = undamped_errors(layers, H=H, damp=factor.damp)
        return CompressedGroup(levels, errors, notes + self._clipped(group, levels))

    def _solve(self, rows: Tensor, bits: Sequence[int], *, U: Tensor, order: Tensor) -> tuple[Rounded, Tensor]:
        """Rows (rows, cols), whose columns stand in `order`, at several widths.

        Returns them with columns in their original order, and Σ E², (levels, rows).
        """
        W = lanes_of(rows, len(bits))
        group_size = fitting_group_size(len(W), self.group_size)
        fit = partial(self._fit, max_code=max_codes(bits, rows=len(rows), device=rows.device))
        grids = [fit(part) for part in W[order.argsort()].split(group_size)] if self.act_order else []
        places = order.tolist() if self.act_order else list(range(len(order)))
        rounder = _Rounder(fit, grids, group_size, order, places, torch.empty_like(W, dtype=torch.uint8))
        loss = sweep(W, U, rounder, block_size=group_size).square_().sum(0)
        scale = torch.stack([grid.scale for grid in rounder.grids])
        zero = torch.stack([grid.zero for grid in rounder.grids])
        return self._rounded(bits, rounder.codes, scale, zero), by_level(loss, len(bits))


@dataclass
class _Rounder:
    """Rounds a column to the grid of its group; a grid that is not there yet is fitted when the group is reached.

    `order` are the original places of the columns, as a tensor and as a list. `steps` are the codes of the columns of
    the block, (block, lanes), less their zero points; the codes are made of them when the block is settled.
    """

    fit: Callable[[Tensor], Grid]
    grids: list[Grid]
    group_size: int
    order: Tensor
    places: list[int]
    codes: Tensor
    start: int = 0
    steps: Tensor = field(default_factory=partial(torch.empty, 0))

    def start_block(self, start: int, W: Tensor) -> None:
        self.start, self.steps = start, torch.empty_like(W)
        if len(self.grids) * self.group_size <= start:
            self.grids.append(self.fit(W))

    def settle(self, column: int, w: Tensor) -> None:
        self._grid(column).leave_error(w, self.steps[column - self.start])

    def end_block(self) -> None:
        block = range(self.start, self.start + len(self.steps))
        codes = self.steps.add_(torch.stack([self._grid(column).zero for column in block]))
        self.codes.index_copy_(0, self.order[block.start : block.stop], codes.to(torch.uint8))

    def _grid(self, column: int) -> Grid:
        return self.grids[self.places[column] // self.group_size]
