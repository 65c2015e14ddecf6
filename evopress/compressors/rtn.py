"""Round to nearest: rounds every weight to the nearest point of its grid."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from evopress.compressors.base import CompressedGroup, LayerGroup
from evopress.compressors.integer_levels import IntegerLevels, RoundedRows
from evopress.compressors.output_errors import dense_levels, relative_errors
from evopress.compressors.sweep import lanes_of
from evopress.runtime.config_class import config_class
from evopress.weights.grids import Grid, max_codes


@config_class
class RTN(IntegerLevels):
    """Rounds to nearest at several bit widths, without calibration. It is the baseline for GPTQ."""

    needs_hessian: ClassVar[bool] = False

    range: Literal["minmax", "mse"] = "mse"

    @property
    def propagate_level(self) -> int:
        """Has no effect, because there is no calibration."""
        return 0

    def compress(self, group: LayerGroup) -> CompressedGroup:
        return round_to_nearest(self, group)


def round_to_nearest(settings: IntegerLevels, group: LayerGroup) -> CompressedGroup:
    """Round all layers to all levels. The errors are weighted by the Hessian if the group has one."""
    rows = torch.cat(group.weights)
    power = rows.new_ones(rows.shape[1]) if group.hessian is None else group.hessian.diagonal()
    parts = [_round(settings, rows, bits, group_size=size, power=power) for bits, size in settings.passes(rows)]
    levels = settings.packed(parts, group.num_rows)
    errors = relative_errors(dense_levels(levels), group.weights, H=group.hessian)
    return CompressedGroup(levels, errors, settings.clipping_notes(group, levels))


def _round(
    settings: IntegerLevels, rows: Tensor, bits: Sequence[int], *, group_size: int, power: Tensor
) -> RoundedRows:
    W = lanes_of(rows, len(bits)).unflatten(0, (-1, group_size))  # (groups, group_size, lanes)
    max_code = max_codes(bits, rows=len(rows), device=rows.device)
    grid = settings.fit(W, power.unflatten(0, (-1, group_size)), max_code=max_code)
    codes = Grid(grid.scale.unsqueeze(1), grid.zero.unsqueeze(1), grid.max_code).encode(W).flatten(0, 1)
    return settings.rounded(bits, codes.to(torch.uint8), scale=grid.scale, zero=grid.zero)
