"""Rounds in a sweep. Every column is rounded to the grid of its group of columns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor


class RoundingGrid(Protocol):
    """The grid of one group of columns, for all lanes."""

    @property
    def zero(self) -> Tensor:
        """Zero points, (lanes,)."""

    def leave_error(self, weight: Tensor, steps: Tensor) -> None:
        """Round `weight` (lanes,). Leaves only the error in `weight`, and writes codes minus zero points to `steps`."""


G = TypeVar("G", bound=RoundingGrid)


@dataclass
class GroupRounder(Generic[G]):
    """A `ColumnCompressor` for a sweep whose blocks have the size of a group.

    `fit` makes the grid of a group from its columns (group_size, lanes) and the power of their inputs (group_size,). A
    group without a grid gets one when the sweep reaches it. `power` (cols,) is the input power of every column, in the
    order of the sweep. The codes are written to `codes` (cols, lanes), which has an integer type. `order` has the
    position in `codes` of every swept column. `positions` has the same numbers as Python integers, which avoids waiting
    for a GPU.
    """

    fit: Callable[[Tensor, Tensor], G]
    group_size: int
    power: Tensor
    codes: Tensor
    order: Tensor
    positions: Sequence[int]
    grids: list[G] = field(default_factory=list)
    _start: int = 0
    _steps: Tensor = field(default_factory=partial(torch.empty, 0))
    """The codes minus the zero points of the columns of the current block, (block, lanes), as floats."""

    def start_block(self, start: int, W: Tensor) -> None:
        self._start, self._steps = start, torch.empty_like(W)
        if len(self.grids) * self.group_size <= start:
            self.grids.append(self.fit(W, self.power[start : start + len(W)]))

    def compress_column(self, column: int, w: Tensor) -> None:
        self._grid(column).leave_error(w, self._steps[column - self._start])

    def end_block(self) -> None:
        block = range(self._start, self._start + len(self._steps))
        codes = self._steps.add_(torch.stack([self._grid(column).zero for column in block]))
        self.codes.index_copy_(0, self.order[block.start : block.stop], codes.to(self.codes.dtype))

    def _grid(self, column: int) -> G:
        return self.grids[self.positions[column] // self.group_size]
