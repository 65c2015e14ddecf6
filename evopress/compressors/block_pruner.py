"""Prunes in a sweep. The mask of a block of columns is chosen when the sweep reaches the block."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class BlockPruner:
    """A `ColumnCompressor` that removes the smallest w²/U_jj² of each block of columns.

    `num_zeros` is the number of weights that each layer loses, [level][layer]. `num_rows` is the number of rows of each
    layer. `pivots` is the diagonal of U. The results are written to `values` and `kept`, both (cols, lanes). `kept` is
    1 or 0 in the type of the values, because that multiplies several times faster than a bool.
    """

    num_zeros: Sequence[Sequence[int]]
    num_rows: list[int]
    pivots: Tensor
    values: Tensor
    kept: Tensor

    def start_block(self, start: int, W: Tensor) -> None:
        stop, cols = start + len(W), len(self.values)
        by_level = (len(self.num_zeros), -1)
        scores = W.abs().div_(self.pivots[start:stop, None]).unflatten(1, by_level)  # sorts like w²/U_jj²
        kept = self.kept[start:stop].unflatten(1, by_level)  # (block, levels, rows)
        layers = zip(scores.split(self.num_rows, 2), kept.split(self.num_rows, 2), strict=True)
        for layer, (layer_scores, layer_kept) in enumerate(layers):
            zeros = [layer_zeros[layer] for layer_zeros in self.num_zeros]
            num_pruned = [count * stop // cols - count * start // cols for count in zeros]  # adds up to the count
            pruned = smallest(layer_scores.transpose(0, 1).flatten(1), num_pruned)
            layer_kept.copy_(pruned.logical_not_().unflatten(1, (len(W), -1)).transpose(0, 1))

    def compress_column(self, column: int, w: Tensor) -> None:
        w.sub_(self.values[column].copy_(w).mul_(self.kept[column]))

    def end_block(self) -> None:
        """Nothing is left to do."""


def smallest(scores: Tensor, counts: Sequence[int]) -> Tensor:
    """A bool mask of the `counts[i]` smallest entries in row i of `scores` (rows, n).

    Of equal entries, the first ones are taken. Selecting is faster than sorting, above all for short rows.
    """
    thresholds = [row.kthvalue(max(count, 1)).values for row, count in zip(scores, counts, strict=True)]
    threshold = torch.stack(thresholds).unsqueeze(1)
    below, ties = scores < threshold, scores == threshold
    num_ties = torch.tensor(counts, device=scores.device) - below.sum(1)
    return below.logical_or_(ties & (ties.cumsum(1, dtype=torch.int32) <= num_ties.unsqueeze(1)))
