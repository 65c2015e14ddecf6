"""Quantises layers to GGUF types in a sweep."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from evopress.compressors.base import LayerGroup
from evopress.compressors.block_search import search_blocks
from evopress.compressors.group_rounder import GroupRounder
from evopress.compressors.scalars import fetch_scalars
from evopress.compressors.sweep import by_level, lanes_of, split_levels, sweep
from evopress.compressors.type_grids import GRID, fit_type, grids_of_lanes
from evopress.weights.base import CompressedWeight
from evopress.weights.block_grids import BLOCK, TYPES, BlockGrid, fit_blocks
from evopress.weights.ggml import GgmlWeight, num_clipped_blocks
from evopress.weights.k_types import K_TYPES
from evopress.weights.kquants import KWeight

Swept = tuple[GgmlWeight | KWeight, Tensor]
"""The rows of all layers in one type, and Σ E² of each row."""


@dataclass(frozen=True)
class BlockSweep:
    """Everything that a sweep of one group of layers to GGUF types needs except the weights.

    `U` is the factor of the inverse Hessian, whose rows and columns are permuted by `order`. `power` (cols,) is the
    Hessian's diagonal in the original order. With `search`, the grids minimise the squared error weighted by `power`;
    otherwise 32-wide types have the grids of the reference quantisers. With `static_grids`, all grids are fitted before
    the sweep; otherwise those of 32-wide types are fitted when the sweep reaches them.
    """

    U: Tensor
    order: Tensor
    power: Tensor
    search: bool
    static_grids: bool

    def to_types(
        self, rows: Tensor, names: Sequence[str], *, num_rows: list[int]
    ) -> tuple[list[list[GgmlWeight | KWeight]], list[Tensor]]:
        """Quantise all layers of the group to the types `names` by GPTQ.

        `rows` (rows, cols) are the rows of all layers, with their columns permuted by `order`. `num_rows` is the number
        of rows of each layer. Returns the levels of each layer, in the order of `names`, and Σ E² of each layer,
        (types,).
        """
        fitted = [name for name in names if self.static_grids or name in K_TYPES]
        swept: dict[str, Swept] = {}
        for part in split_levels(fitted, rows):
            swept |= self._sweep_on_fitted_grids(rows, part)
        for part in split_levels([name for name in names if name not in fitted], rows):
            swept |= self._sweep(rows, part)
        parts = {name: weight.data.split(num_rows) for name, (weight, _) in swept.items()}
        levels = [
            [replace(swept[name][0], data=parts[name][layer].clone()) for name in names]
            for layer in range(len(num_rows))
        ]
        losses = torch.stack([swept[name][1] for name in names]).split(num_rows, 1)
        return levels, [loss.sum(1) for loss in losses]

    def _sweep_on_fitted_grids(self, rows: Tensor, names: Sequence[str]) -> dict[str, Swept]:
        columns = rows.t()[self.order.argsort()]
        fitted = [fit_type(columns, self.power, type_name=name, search=self.search) for name in names]
        W = lanes_of(rows, len(names))
        rounder = GroupRounder(
            _no_fit,
            GRID,
            power=self.power,
            codes=torch.empty_like(W, dtype=torch.int8),
            order=self.order,
            positions=self.order.tolist(),
            grids=grids_of_lanes(fitted),
        )
        losses = self._losses(W, rounder, num_types=len(names))
        codes = rounder.codes.chunk(len(names), 1)
        return {
            name: (grids.pack(part), loss) for name, grids, part, loss in zip(names, fitted, codes, losses, strict=True)
        }

    def _sweep(self, rows: Tensor, names: Sequence[str]) -> dict[str, Swept]:
        """Fit the grids of 32-wide types when the sweep reaches them. The columns are in their original order."""
        W = lanes_of(rows, len(names))
        types = [TYPES[name] for name in names]

        def fit(columns: Tensor, power: Tensor) -> BlockGrid:
            return search_blocks(columns, power, types=types) if self.search else fit_blocks(columns, types)

        rounder = GroupRounder(
            fit,
            BLOCK,
            power=self.power,
            codes=torch.empty_like(W, dtype=torch.int8),
            order=self.order,
            positions=range(len(W)),
        )
        losses = self._losses(W, rounder, num_types=len(names))
        parts = (
            rounder.codes,
            torch.stack([grid.scale for grid in rounder.grids]),
            torch.stack([grid.offset for grid in rounder.grids]),
        )
        by_type = zip(names, *(by_level(part, len(names)) for part in parts), losses, strict=True)
        return {
            name: (GgmlWeight.from_codes(codes, scales, offsets=offsets, type_name=name), loss)
            for name, codes, scales, offsets, loss in by_type
        }

    def _losses(self, W: Tensor, rounder: GroupRounder[BlockGrid], *, num_types: int) -> Tensor:
        """Sweep W. Returns Σ E² of every row, (types, rows)."""
        return by_level(sweep(W, self.U, columns=rounder, block_size=BLOCK).square_().sum(0), num_types)


def _no_fit(columns: Tensor, power: Tensor) -> BlockGrid:
    raise AssertionError("all grids are fitted before the sweep")


def clipping_notes(group: LayerGroup, levels: Sequence[Sequence[CompressedWeight]]) -> Iterator[str]:
    """Yield a note on each layer with blocks of weights that some 32-wide type cannot represent, not even roughly.

    K types can: their float16 factors are multiplied by integers.
    """
    of_blocks = [[level for level in layer_levels if isinstance(level, GgmlWeight)] for layer_levels in levels]
    counts = iter(
        fetch_scalars(
            *(
                num_clipped_blocks(weight, level)
                for weight, layer_levels in zip(group.weights, of_blocks, strict=True)
                for level in layer_levels
            )
        )
    )
    for name, layer_levels in zip(group.names, of_blocks, strict=True):
        clipped = [(level.type_name, count) for level, count in zip(layer_levels, counts, strict=False) if count]
        if clipped:
            blocks = ", ".join(f"{count:.0f} blocks of {kind}" for kind, count in clipped)
            yield (
                f"{name}: {blocks} are outside the range of their float16 scales and are clipped; "
                "use compress=gptq compress.scale_dtype=float32, and export.formats=[hf]"
            )
