"""The column sweep of GPTQ and SparseGPT: compress one column, and spread its error over the columns after it.

::

    for each column j, left to right:
        q ← compressed W_j                                rounded to its grid, or partly set to zero
        E_j ← W_j − q
        W_k ← W_k − U_jk / U_jj · E_j     for all k > j

A *lane* is one row of one layer at one level. Lanes do not affect each other, so all rows of all layers that read the
same input, at all levels, are swept together. They form one matrix (cols, lanes), in which a column of the layer is
contiguous in memory.

Updates are lazy: a column receives the errors of earlier columns only just before it is compressed, and blocks of
columns receive them in one matrix product. E overwrites W, which saves a second matrix. The result is the same as that
of the loop above, except for the order of sums.

Source: arXiv 2210.17323, Algorithm 1; arXiv 2301.00774, Algorithm 1.
"""

from collections.abc import Sequence
from typing import Protocol, TypeVar

from torch import Tensor

T = TypeVar("T")

LAZY_COLUMNS = 8
"""Columns that are updated at once inside a block. This affects only the speed."""

MAX_ELEMENTS = 2**28
"""Weights that are swept at once (1 GiB of float32). If there are more, the levels are swept in parts."""


class ColumnCompressor(Protocol):
    """Decides what the columns become."""

    def start_block(self, start: int, W: Tensor) -> None:
        """Called before the columns of a block, W (block, lanes), are compressed. The first one is column `start`.

        The columns have already received the errors of all earlier blocks.
        """

    def compress_column(self, column: int, w: Tensor) -> None:
        """Compress column w (lanes,) to q, and leave only the error w − q in it. Called once per column."""

    def end_block(self) -> None:
        """Called when all columns of the block are compressed."""


def sweep(W: Tensor, U: Tensor, *, columns: ColumnCompressor, block_size: int) -> Tensor:
    """Compress all columns of W (cols, lanes). W is overwritten with the scaled errors E_j / U_jj, and returned.

    The product of these errors with U is the change of the weights. So the sum of their squares in a lane is
    tr(ΔW (UᵀU)⁻¹ ΔWᵀ).
    """
    pivots = U.diagonal().unsqueeze(1)
    for start in range(0, len(W), block_size):
        block = slice(start, min(start + block_size, len(W)))
        shares = U[: block.stop, block] / pivots[: block.stop]  # (columns so far, block)
        _apply_errors(W, shares, of=slice(0, start), to=block, start=start)
        columns.start_block(start, W[block])
        for first in range(block.start, block.stop, LAZY_COLUMNS):
            part = slice(first, min(first + LAZY_COLUMNS, block.stop))
            _apply_errors(W, shares, of=slice(start, first), to=part, start=start)
            for column in range(part.start, part.stop):
                _apply_errors(W, shares, of=slice(first, column), to=slice(column, column + 1), start=start)
                columns.compress_column(column, W[column])
        columns.end_block()
    return W.div_(pivots)


def _apply_errors(W: Tensor, shares: Tensor, *, of: slice, to: slice, start: int) -> None:
    """Subtract shares of the errors of the compressed columns `of` from the columns `to` of the block at `start`."""
    if of.start < of.stop:
        W[to].addmm_(shares[of, to.start - start : to.stop - start].t(), W[of], alpha=-1)


def split_levels(levels: Sequence[T], rows: Tensor) -> list[Sequence[T]]:
    """Split levels into parts that are swept together, to limit memory. `rows` (rows, cols) is one level."""
    at_once = max(1, MAX_ELEMENTS // rows.numel())
    return [levels[first : first + at_once] for first in range(0, len(levels), at_once)]


def lanes_of(rows: Tensor, num_levels: int) -> Tensor:
    """Repeat rows (rows, cols) once per level, as lanes (cols, levels·rows) ordered by level, then row."""
    return rows.t().repeat(1, num_levels)


def by_level(lanes: Tensor, num_levels: int) -> Tensor:
    """Undo `lanes_of`, from (…, levels·rows) to (levels, rows, …)."""
    return lanes.unflatten(-1, (num_levels, -1)).movedim((-2, -1), (0, 1)).contiguous()
