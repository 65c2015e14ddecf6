"""SparseGPT: prune column block by column block, and let the columns to come make up for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from evopress.compressors.base import LayerGroup, CompressedGroup
from evopress.compressors.linalg import inverse_factor
from evopress.compressors.magnitude import Magnitude
from evopress.compressors.sweep import by_level, in_parts, lanes_of, sweep, undamped_errors
from evopress.runtime.config_class import config_class
from evopress.weights.base import CompressedWeight
from evopress.weights.sparse import SparseWeight


@config_class
class SparseGPT(Magnitude):
    """Prunes with the inverse Hessian's correction, all levels and all layers of a group in one sweep.

    In every block of `block_size` columns a layer loses the weights with the smallest w²/U_jj², its share of zeros to
    the weight; equal scores go by column, then row. `damp` is the damping as a share of the Hessian's mean diagonal.

    Source: arXiv 2301.00774, Algorithm 1. Unlike there, the columns to come also make up for rounding the survivors to
    the type they are stored in.
    """

    needs_hessian: ClassVar[bool] = True

    block_size: int = Field(default=128, gt=0)
    damp: float = Field(default=0.01, gt=0)

    def compress(self, group: LayerGroup) -> CompressedGroup:
        assert group.hessian is not None, "the group has no Hessian"
        H, names = group.hessian, ", ".join(group.names)
        factor = inverse_factor(H, damp=self.damp)
        notes = tuple(f"{names}: {note}" for note in factor.notes)
        if factor.U is None:
            by_magnitude = super().compress(group)
            return CompressedGroup(
                by_magnitude.levels, by_magnitude.errors, (*notes, f"{names}: pruned by magnitude instead")
            )
        rows = torch.cat(group.weights).masked_fill_(factor.dead, 0)
        num_zeros = [self.num_zeros(layer) for layer in group.shapes]
        parts = [
            self._solve(rows, counts, U=factor.U, num_rows=[layer.rows for layer in group.shapes])
            for counts in in_parts(_padded(num_zeros), rows)
        ]
        levels: list[list[CompressedWeight]] = []
        layers = []
        for index, (shape, counts, weight) in enumerate(zip(group.shapes, num_zeros, group.weights, strict=True)):
            pruned = [level for part, _ in parts for level in part[index]][: len(counts)]
            levels.append(
                [
                    SparseWeight.from_dense(dense, kept.bool(), num_kept=shape.num_weights - zeros)
                    for (dense, kept), zeros in zip(pruned, counts, strict=True)
                ]
            )
            losses = torch.cat([loss[index] for _, loss in parts])[: len(counts)]
            layers.append(([dense.float for dense, _ in pruned], weight, losses))
        return CompressedGroup(levels, undamped_errors(layers, H=H, damp=factor.damp), notes)

    def _solve(
        self, rows: Tensor, num_zeros: Sequence[Sequence[int]], *, U: Tensor, num_rows: list[int]
    ) -> tuple[list[list[tuple[Tensor, Tensor]]], list[Tensor]]:
        """All layers at the levels whose `num_zeros` are given, [level][layer].

        Returns the weights, [layer][level], dense and with what is kept of them; and of each layer Σ E², (levels,).
        """
        num_lanes = len(num_zeros) * len(rows)
        values, kept = rows.new_empty(2, rows.shape[1], num_lanes, dtype=self._value_dtype)
        pruner = _Pruner(num_zeros, num_rows, U.diagonal(), values, kept)
        loss = sweep(lanes_of(rows, len(num_zeros)), U, pruner, block_size=self.block_size).square_().sum(0)
        of_layers = zip(*(by_level(lanes, len(num_zeros)).split(num_rows, 1) for lanes in (values, kept)), strict=True)
        levels = [list(zip(*layer, strict=True)) for layer in of_layers]
        return levels, [lost.sum(1) for lost in by_level(loss, len(num_zeros)).split(num_rows, 1)]


@dataclass
class _Pruner:
    """Chooses the mask of a column block when the block is reached, and prunes its columns by it.

    `num_zeros` is what each layer loses, [level][layer]; `num_rows` are the rows of each layer. `values` and `kept`,
    (cols, lanes), are filled in; `kept` is 1 or 0, in the type of the values, which multiply several times faster with
    it than with a bool.
    """

    num_zeros: Sequence[Sequence[int]]
    num_rows: list[int]
    pivots: Tensor
    values: Tensor
    kept: Tensor

    def start_block(self, start: int, W: Tensor) -> None:
        stop, cols = start + len(W), len(self.values)
        by_level = (len(self.num_zeros), -1)
        scores = W.abs().div_(self.pivots[start:stop, None]).unflatten(1, by_level)  # ordered like w²/U_jj²
        kept = self.kept[start:stop].unflatten(1, by_level)  # (block, levels, rows)
        layers = zip(scores.split(self.num_rows, 2), kept.split(self.num_rows, 2), strict=True)
        for layer, (of_layer, keep) in enumerate(layers):
            zeros = [of_level[layer] for of_level in self.num_zeros]
            shares = [count * stop // cols - count * start // cols for count in zeros]  # add up to the count
            pruned = smallest(of_layer.transpose(0, 1).flatten(1), shares)
            keep.copy_(pruned.logical_not_().unflatten(1, (len(W), -1)).transpose(0, 1))

    def settle(self, column: int, w: Tensor) -> None:
        w.sub_(self.values[column].copy_(w).mul_(self.kept[column]))

    def end_block(self) -> None:
        """Nothing is left to do."""


def smallest(scores: Tensor, counts: Sequence[int]) -> Tensor:
    """Where the `counts[i]` smallest of row i of `scores` (rows, n) stand, bool; of equal ones the first.

    Selecting costs less than sorting, above all where a row is short.
    """
    thresholds = [row.kthvalue(max(count, 1)).values for row, count in zip(scores, counts, strict=True)]
    threshold = torch.stack(thresholds).unsqueeze(1)
    below, ties = scores < threshold, scores == threshold
    left = torch.tensor(counts, device=scores.device) - below.sum(1)
    return below.logical_or_(ties & (ties.cumsum(1, dtype=torch.int32) <= left.unsqueeze(1)))


def _padded(num_zeros: list[list[int]]) -> list[tuple[int, ...]]:
    """From [layer][level] to [level][layer]; layers with fewer levels repeat their last, to be thrown away."""
    longest = max(map(len, num_zeros))
    return list(zip(*(counts + counts[-1:] * (longest - len(counts)) for counts in num_zeros), strict=True))
