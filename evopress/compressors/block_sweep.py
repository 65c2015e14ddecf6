"""Quantises layers to GGUF block types in a sweep."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evopress.compressors.base import LayerGroup
from evopress.compressors.block_search import search_blocks
from evopress.compressors.group_rounder import GroupRounder
from evopress.compressors.scalars import fetch_scalars
from evopress.compressors.sweep import by_level, lanes_of, split_levels, sweep
from evopress.weights.block_grids import BLOCK, TYPES, BlockGrid, fit_blocks
from evopress.weights.ggml import GgmlWeight, num_clipped_blocks


@dataclass(frozen=True)
class BlockSweep:
    """Everything that a sweep of one group of layers to block types needs except the weights.

    `U` is the factor of the inverse Hessian, whose rows and columns are permuted by `order`. `power` (cols,) is the
    Hessian's diagonal in the original order. With `search`, the grids minimise the squared error weighted by `power`;
    otherwise they are the grids of the reference quantisers. With `static_grids`, all grids are fitted before the
    sweep.
    """

    U: Tensor
    order: Tensor
    power: Tensor
    search: bool
    static_grids: bool

    def to_types(
        self, rows: Tensor, names: Sequence[str], *, num_rows: list[int]
    ) -> tuple[list[list[GgmlWeight]], list[Tensor]]:
        """Quantise all layers of the group to the types `names` by GPTQ.

        `rows` (rows, cols) are the rows of all layers, with their columns permuted by `order`. `num_rows` is the number
        of rows of each layer. Returns the levels of each layer, in the order of `names`, and Σ E² of each layer,
        (types,).
        """
        if not names:
            return [[] for _ in num_rows], [rows.new_empty(0) for _ in num_rows]
        parts = [self._sweep(rows, part) for part in split_levels(names, rows)]
        data = [type_rows.split(num_rows) for part, _ in parts for type_rows in part]
        levels = [
            [GgmlWeight(type_rows[layer].clone(), name) for name, type_rows in zip(names, data, strict=True)]
            for layer in range(len(num_rows))
        ]
        losses = torch.cat([loss for _, loss in parts]).split(num_rows, 1)
        return levels, [loss.sum(1) for loss in losses]

    def _sweep(self, rows: Tensor, names: Sequence[str]) -> tuple[list[Tensor], Tensor]:
        """The bytes of the rows at each type, (rows, bytes), and Σ E², (types, rows)."""
        W = lanes_of(rows, len(names))
        types = [TYPES[name] for name in names]

        def fit(columns: Tensor, power: Tensor) -> BlockGrid:
            return search_blocks(columns, power, types=types) if self.search else fit_blocks(columns, types)

        grids = []
        if self.static_grids:
            blocks = W[self.order.argsort()].split(BLOCK)
            grids = [fit(block, power) for block, power in zip(blocks, self.power.split(BLOCK), strict=True)]
        rounder = GroupRounder(
            fit,
            BLOCK,
            power=self.power[self.order],
            codes=torch.empty_like(W, dtype=torch.int8),
            order=self.order,
            positions=self.order.tolist() if self.static_grids else range(len(W)),
            grids=grids,
        )
        loss = sweep(W, self.U, columns=rounder, block_size=BLOCK).square_().sum(0)
        parts = (
            rounder.codes,
            torch.stack([grid.scale for grid in rounder.grids]),
            torch.stack([grid.offset for grid in rounder.grids]),
        )
        by_type = zip(names, *(by_level(part, len(names)) for part in parts), strict=True)
        data = [
            GgmlWeight.from_codes(codes, scales, offsets=offsets, type_name=name).data
            for name, codes, scales, offsets in by_type
        ]
        return data, by_level(loss, len(names))


def clipping_notes(group: LayerGroup, levels: Sequence[Sequence[GgmlWeight]]) -> Iterator[str]:
    """Yield a note on each layer with blocks of weights that some type cannot represent, not even roughly."""
    counts = iter(
        fetch_scalars(
            *(
                num_clipped_blocks(weight, level)
                for weight, layer_levels in zip(group.weights, levels, strict=True)
                for level in layer_levels
            )
        )
    )
    for name, layer_levels in zip(group.names, levels, strict=True):
        clipped = [(level.type_name, count) for level, count in zip(layer_levels, counts, strict=False) if count]
        if clipped:
            blocks = ", ".join(f"{count:.0f} blocks of {kind}" for kind, count in clipped)
            yield (
                f"{name}: {blocks} are outside the range of their float16 scales and are clipped; "
                "use compress=gptq compress.scale_dtype=float32, and export.formats=[hf]"
            )
