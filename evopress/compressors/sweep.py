"""The column sweep that GPTQ and SparseGPT share: settle one column, spread its error over the columns to come.

::

    for each column j, left to right:
        q ← settle(W_j)                                   round it to its grid, or set part of it to zero
        E_j ← W_j − q
        W_k ← W_k − U_jk / U_jj · E_j     for all k > j

A *lane* is one row of one layer at one level. Lanes never meet, so all rows of all layers that read the same input, at
all levels, are swept together as one matrix (cols, lanes), whose columns of the layer are contiguous in memory.

The updates are done late: a column is brought up to date by all errors before it just before it is settled, a block of
columns at a time with one matrix product. E takes the place of W, so that no second matrix is needed. The result is
that of the loop above in another order of summation.

Source: arXiv 2210.17323, Algorithm 1; arXiv 2301.00774, Algorithm 1.
"""

from collections.abc import Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from evopress.compressors.linalg import Levels, relative_errors

T = TypeVar("T")

LAZY = 8
"""Columns brought up to date at once inside a block. Changes the speed only."""

MAX_ELEMENTS = 2**28
"""Weights swept at once (1 GiB of float32); where there are more, the levels are swept in parts."""


class Settler(Protocol):
    """Decides what a column becomes."""

    def start_block(self, start: int, W: Tensor) -> None:
        """Called with columns `start` … of a block, W (block, lanes), up to date and not yet settled."""

    def settle(self, column: int, w: Tensor) -> None:
        """Decide what column w (lanes,) becomes, and leave in it what is lost, w − q. Called once per column."""

    def end_block(self) -> None:
        """Called when all columns of the block are settled."""


def sweep(W: Tensor, U: Tensor, settler: Settler, *, block_size: int, lazy: int | None = None) -> Tensor:
    """Settle all columns of W (cols, lanes), which is overwritten and returned as the scaled errors E_j / U_jj.

    Their product with U is the change of the weights, so that the sum of their squares is tr(ΔW (UᵀU)⁻¹ ΔWᵀ), lane by
    lane.
    """
    pivots = U.diagonal().unsqueeze(1)
    U, lazy = U / pivots, lazy or LAZY
    for start in range(0, len(W), block_size):
        block = slice(start, min(start + block_size, len(W)))
        _bring_up_to_date(W, U, slice(0, start), block)
        settler.start_block(start, W[block])
        for first in range(block.start, block.stop, lazy):
            part = slice(first, min(first + lazy, block.stop))
            _bring_up_to_date(W, U, slice(start, first), part)
            for column in range(part.start, part.stop):
                _bring_up_to_date(W, U, slice(first, column), slice(column, column + 1))
                settler.settle(column, W[column])
        settler.end_block()
    return W.div_(pivots)


def _bring_up_to_date(W: Tensor, U: Tensor, settled: slice, columns: slice) -> None:
    """Apply the errors of `settled` columns to `columns`."""
    if settled.start < settled.stop:
        W[columns].addmm_(U[settled, columns].t(), W[settled], alpha=-1)


def in_parts(levels: Sequence[T], rows: Tensor) -> list[Sequence[T]]:
    """Split `levels` into runs that are swept together, so that memory stays bounded: levels never meet either."""
    at_once = max(1, MAX_ELEMENTS // rows.numel())
    return [levels[first : first + at_once] for first in range(0, len(levels), at_once)]


def lanes_of(rows: Tensor, num_levels: int) -> Tensor:
    """Rows (rows, cols) once per level, as lanes (cols, levels·rows) ordered by level, then row."""
    return rows.t().repeat(1, num_levels)


def by_level(lanes: Tensor, num_levels: int) -> Tensor:
    """Undo `lanes_of`, from (…, levels·rows) to (levels, rows, …)."""
    return lanes.unflatten(-1, (num_levels, -1)).movedim((-2, -1), (0, 1)).contiguous()


def undamped_errors(layers: Sequence[tuple[Levels, Tensor, Tensor]], *, H: Tensor, damp: float) -> list[list[float]]:
    """tr(ΔW H ΔWᵀ) / tr(W H Wᵀ) of every level of each layer; a GPU is waited for once.

    A layer is given by its levels, its dense weight before, and the sweep's losses Σ E² = tr(ΔW (H + damp·I) ΔWᵀ),
    (levels,), which save a product with H per level.
    """
    damped = damp * (H.diagonal() != 0).double()
    lost = []
    for levels, weight, losses in layers:
        changes = torch.stack([(level() - weight).square_().sum(0, dtype=torch.float64) for level in levels])
        lost.append(losses.double() - changes @ damped)
    return relative_errors([(levels, weight) for levels, weight, _ in layers], H, lost)
