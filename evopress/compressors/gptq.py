"""GPTQ: rounds one column at a time, and changes the later columns to compensate for the error."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import lcm
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from evopress.compressors.base import CompressedGroup, LayerGroup
from evopress.compressors.group_rounder import GroupRounder
from evopress.compressors.group_sizes import IntegerFormat
from evopress.compressors.integer_levels import IntegerLevels, RoundedRows
from evopress.compressors.inverse_factor import column_order, factor_inverse
from evopress.compressors.output_errors import dense_levels, undamped_errors
from evopress.compressors.rtn import round_to_nearest
from evopress.compressors.scale_refit import refit_scales
from evopress.compressors.sweep import by_level, lanes_of, sweep
from evopress.runtime.config_class import config_class
from evopress.weights.grids import Grid, max_codes


@config_class
class GPTQ(IntegerLevels):
    """Quantises with corrections from the inverse Hessian. One sweep solves all widths of all layers of a group.

    `damp` is the damping as a share of the Hessian's mean diagonal. The next block is calibrated on the outputs of the
    width `propagate_bits`. If `bits` does not contain it, the next larger width is used, or the largest if there is
    none.

    With `act_order`, the columns with the strongest inputs are rounded first. Groups still consist of neighbouring
    columns, and codes are stored in the original order, as inference engines expect. The grids are then fitted to the
    original weights, before the sweep. `refit_scales` fits the scales of each row again after the sweep. With
    `weigh_tokens`, tokens count in the Hessian by their effect on the model's predictions.

    Source: arXiv 2210.17323, Algorithm 1. Unlike there, a grid that is fitted during the sweep (without `act_order`) is
    fitted after *all* earlier errors are applied to the whole group, so it does not depend on the lazy block size.
    """

    needs_hessian: ClassVar[bool] = True

    act_order: bool = True
    refit_scales: bool = True
    weigh_tokens: bool = True
    damp: float = Field(default=0.01, gt=0)
    propagate_bits: int = Field(default=3, ge=2, le=8)

    @property
    def needs_token_weights(self) -> bool:
        return self.weigh_tokens

    @property
    def propagate_level(self) -> int:
        sizes = (self.group_size,) if isinstance(self.group_size, int) else self.group_size
        widths = [each.bits for each in self.formats(lcm(*sizes))]
        return widths.index(min((width for width in widths if width >= self.propagate_bits), default=widths[0]))

    def compress(self, group: LayerGroup) -> CompressedGroup:
        assert group.hessian is not None, "the group has no Hessian"
        H = group.hessian
        order = column_order(H, by_power=self.act_order)
        factor = factor_inverse(H, damp=self.damp, order=order)
        notes = tuple(group.note(note) for note in factor.notes)
        if factor.U is None:
            rounded = round_to_nearest(self, group)
            return CompressedGroup(rounded.levels, rounded.errors, (*notes, group.note("rounded to nearest instead")))
        rows = torch.cat(group.weights)[:, order].masked_fill_(factor.dead, 0)
        power = H.diagonal() + torch.where(H.diagonal() == 0, 1, factor.absolute_damping)
        parts: list[RoundedRows] = []
        loss_of: dict[IntegerFormat, Tensor] = {}
        hessian = _HessianParts(factor.U, order, power, _scaled(H, power) if self.refit_scales else None)
        for bits, size in self.passes(rows):
            part, loss = self._solve(rows, bits, group_size=size, parts=hessian)
            parts.append(part)
            loss_of |= dict(zip(part.formats, loss, strict=True))
        levels = self.packed(parts, group.num_rows)
        losses = torch.stack([loss_of[each] for each in self.formats(len(H))]).split(group.num_rows, 1)
        errors = undamped_errors(
            dense_levels(levels),
            group.weights,
            losses=[loss.sum(1) for loss in losses],
            H=H,
            absolute_damping=factor.absolute_damping,
        )
        return CompressedGroup(levels, errors, notes + self.clipping_notes(group, levels))

    def _solve(
        self, rows: Tensor, bits: Sequence[int], *, group_size: int, parts: "_HessianParts"
    ) -> tuple[RoundedRows, Tensor]:
        """Quantise rows (rows, cols), whose columns are permuted by the order of the sweep, to several widths.

        Returns the rounded rows, with their columns in the original order, and Σ E², (levels, rows).
        """
        order, power = parts.order, parts.power
        W = lanes_of(rows, len(bits))
        fit = partial(self.fit, max_code=max_codes(bits, rows=len(rows), device=rows.device))
        rounder = GroupRounder(
            fit,
            group_size,
            power=power[order],
            codes=torch.empty_like(W, dtype=torch.uint8),
            order=order,
            positions=order.tolist() if self.act_order else range(len(order)),
            grids=_grids_of_groups(fit, W[order.argsort()], power, group_size) if self.act_order else [],
        )
        loss = sweep(W, parts.U, columns=rounder, block_size=group_size).square_().sum(0)
        scale = torch.stack([grid.scale for grid in rounder.grids])
        zero = torch.stack([grid.zero for grid in rounder.grids])
        if parts.scaled is not None:
            steps = rounder.codes.to(rows.dtype).unflatten(0, (-1, group_size)).sub_(zero.unsqueeze(1)).flatten(0, 1)
            scale, loss = refit_scales(
                rows[:, order.argsort()], steps, scale=scale, H=parts.scaled, scale_dtype=self._torch_scale_dtype
            )
            loss = loss * power.amax()
        return self.rounded(bits, rounder.codes, scale=scale, zero=zero), by_level(loss, len(bits))


@dataclass(frozen=True)
class _HessianParts:
    """What a sweep and a refit need of the damped Hessian.

    U is the factor of its inverse, with columns permuted by `order`. `power` is its diagonal. `scaled` is the Hessian
    divided by the largest power; only the refit needs it. Both are in the original order.
    """

    U: Tensor
    order: Tensor
    power: Tensor
    scaled: Tensor | None


def _scaled(H: Tensor, power: Tensor) -> Tensor:
    """H with the diagonal `power`, divided by its largest entry. This keeps sums within the range of the type."""
    scaled = H.clone()
    scaled.diagonal().copy_(power)
    return scaled.div_(power.amax())


def _grids_of_groups(fit: Callable[[Tensor, Tensor], Grid], W: Tensor, power: Tensor, size: int) -> list[Grid]:
    """The grid of each group of `size` neighbouring columns of W (cols, lanes)."""
    grid = fit(W.unflatten(0, (-1, size)), power.unflatten(0, (-1, size)))
    return [Grid(scale, zero, grid.max_code) for scale, zero in zip(grid.scale, grid.zero, strict=True)]
