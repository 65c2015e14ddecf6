"""SparseGPT: prunes one block of columns at a time, and changes the later columns to compensate for the error."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from evopress.compressors.base import CompressedGroup, LayerGroup
from evopress.compressors.block_pruner import BlockPruner
from evopress.compressors.inverse_factor import factor_inverse
from evopress.compressors.magnitude import prune_by_magnitude
from evopress.compressors.output_errors import undamped_errors
from evopress.compressors.sparsity_levels import SparsityLevels
from evopress.compressors.sweep import by_level, lanes_of, split_levels, sweep
from evopress.runtime.config_class import config_class
from evopress.weights.base import CompressedWeight
from evopress.weights.sparse import SparseWeight

PrunedLevels = list[tuple[Tensor, Tensor]]
"""For each level, the dense weight, and 1 where a weight is kept or 0; both (rows, cols), in the storage type."""


@config_class
class SparseGPT(SparsityLevels):
    """Prunes with corrections from the inverse Hessian. One sweep solves all levels of all layers of a group.

    In every block of `block_size` columns, a layer loses the weights with the smallest w²/U_jj². Their number is
    proportional to the columns of the block. Ties are broken by column, then by row. `damp` is the damping as a share
    of the Hessian's mean diagonal. With `weigh_tokens`, tokens count in the Hessian by their effect on the model's
    predictions.

    Source: arXiv 2301.00774, Algorithm 1. Unlike there, later columns also compensate for rounding the remaining
    weights to their storage type.
    """

    needs_hessian: ClassVar[bool] = True

    block_size: int = Field(default=128, gt=0)
    damp: float = Field(default=0.01, gt=0)
    weigh_tokens: bool = True

    @property
    def needs_token_weights(self) -> bool:
        return self.weigh_tokens

    def compress(self, group: LayerGroup) -> CompressedGroup:
        assert group.hessian is not None, "the group has no Hessian"
        factor = factor_inverse(group.hessian, damp=self.damp)
        notes = tuple(group.note(note) for note in factor.notes)
        if factor.U is None:
            pruned = prune_by_magnitude(self, group)
            note = group.note("pruned by magnitude instead")
            return CompressedGroup(pruned.levels, pruned.errors, (*notes, note))
        rows = torch.cat(group.weights).masked_fill_(factor.dead, 0)
        num_zeros = [self.num_zeros(layer) for layer in group.shapes]
        layers = self._solve_in_parts(rows, num_zeros, U=factor.U, num_rows=group.num_rows)
        levels: list[list[CompressedWeight]] = [
            [
                SparseWeight.from_dense(values, kept.bool(), num_kept=values.numel() - zeros)
                for (values, kept), zeros in zip(pruned_levels, counts, strict=True)
            ]
            for (pruned_levels, _), counts in zip(layers, num_zeros, strict=True)
        ]
        errors = undamped_errors(
            [[values.float for values, _ in pruned_levels] for pruned_levels, _ in layers],
            group.weights,
            losses=[losses for _, losses in layers],
            H=group.hessian,
            absolute_damping=factor.absolute_damping,
        )
        return CompressedGroup(levels, errors, notes)

    def _solve_in_parts(
        self, rows: Tensor, num_zeros: list[list[int]], *, U: Tensor, num_rows: list[int]
    ) -> list[tuple[PrunedLevels, Tensor]]:
        """The levels of every layer and their Σ E², (levels,). `num_zeros` is [layer][level]."""
        parts = [self._solve(rows, zeros, U=U, num_rows=num_rows) for zeros in split_levels(_padded(num_zeros), rows)]
        layers = []
        for index, counts in enumerate(num_zeros):
            pruned_levels = [level for levels, _ in parts for level in levels[index]]
            losses = torch.cat([losses[index] for _, losses in parts])
            layers.append((pruned_levels[: len(counts)], losses[: len(counts)]))
        return layers

    def _solve(
        self, rows: Tensor, num_zeros: Sequence[Sequence[int]], *, U: Tensor, num_rows: list[int]
    ) -> tuple[list[PrunedLevels], list[Tensor]]:
        """The levels of every layer, and the Σ E² of every layer, (levels,). `num_zeros` is [level][layer]."""
        num_levels = len(num_zeros)
        values, kept = rows.new_empty(2, rows.shape[1], num_levels * len(rows), dtype=self.storage_dtype)
        pruner = BlockPruner(num_zeros, num_rows, U.diagonal(), values, kept)
        loss = sweep(lanes_of(rows, num_levels), U, columns=pruner, block_size=self.block_size).square_().sum(0)
        by_layer = zip(*(by_level(lanes, num_levels).split(num_rows, 1) for lanes in (values, kept)), strict=True)
        levels = [list(zip(*layer, strict=True)) for layer in by_layer]
        return levels, [lost.sum(1) for lost in by_level(loss, num_levels).split(num_rows, 1)]


def _padded(num_zeros: list[list[int]]) -> list[tuple[int, ...]]:
    """Transpose [layer][level] to [level][layer]. Shorter layers repeat their last level, which is discarded later."""
    longest = max(map(len, num_zeros))
    return list(zip(*(counts + counts[-1:] * (longest - len(counts)) for counts in num_zeros), strict=True))
