"""The grids of all blocks of rows of a GGUF type, fitted before a sweep."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evopress.compressors.block_search import search_blocks
from evopress.compressors.k_search import search_superblocks
from evopress.weights.block_grids import BLOCK, TYPES, BlockGrid, fit_blocks
from evopress.weights.ggml import GgmlWeight
from evopress.weights.k_types import K_TYPES
from evopress.weights.kquants import KWeight

GRID = 16
"""Columns that share a grid in every type. Some types have blocks of 32, whose halves have equal grids."""


@dataclass(frozen=True)
class TypeGrids:
    """Steps and offsets (cols/16, rows) of every 16 columns. Codes run from `low` to `high`.

    `pack` makes the stored weight from codes (cols, rows).
    """

    steps: Tensor
    offsets: Tensor
    low: int
    high: int
    pack: Callable[[Tensor], GgmlWeight | KWeight]


def fit_type(columns: Tensor, power: Tensor, *, type_name: str, search: bool) -> TypeGrids:
    """The grids of weights `columns` (cols, rows). `power` (cols,) is the mean square of each column's inputs.

    With `search`, they minimise the squared error weighted by `power`. Otherwise, 32-wide types have the grids of the
    reference quantisers. Grids of K types are always searched.
    """
    if type_name in K_TYPES:
        return _fit_k_type(columns, power, type_name=type_name)
    return _fit_block_type(columns, power, type_name=type_name, search=search)


def _fit_k_type(columns: Tensor, power: Tensor, *, type_name: str) -> TypeGrids:
    kind, grid = K_TYPES[type_name], search_superblocks(columns, power, type_name=type_name)
    steps, offsets = (
        part.flatten(0, 1).repeat_interleave(kind.sub_block // GRID, 0) for part in (grid.steps(), grid.offsets())
    )
    return TypeGrids(steps, offsets, kind.low, kind.high, grid.weight)


def _fit_block_type(columns: Tensor, power: Tensor, *, type_name: str, search: bool) -> TypeGrids:
    kind, parts = TYPES[type_name], zip(columns.split(BLOCK), power.split(BLOCK), strict=True)
    grids = [search_blocks(w, p, types=[kind]) if search else fit_blocks(w, [kind]) for w, p in parts]
    scales, offsets = (
        torch.stack(values) for values in zip(*((grid.scale, grid.offset) for grid in grids), strict=True)
    )

    def pack(codes: Tensor) -> GgmlWeight:
        return GgmlWeight.from_codes(codes.t(), scales.t(), offsets=offsets.t(), type_name=type_name)

    repeats = BLOCK // GRID
    return TypeGrids(
        scales.repeat_interleave(repeats, 0), offsets.repeat_interleave(repeats, 0), kind.low, kind.high, pack
    )


def grids_of_lanes(fitted: Sequence[TypeGrids]) -> list[BlockGrid]:
    """The grid of every 16 columns, for lanes ordered by type, then row."""
    steps, offsets = torch.cat([grids.steps for grids in fitted], 1), torch.cat([grids.offsets for grids in fitted], 1)
    low = torch.cat([torch.full_like(grids.steps[0], grids.low) for grids in fitted])
    high = torch.cat([torch.full_like(grids.steps[0], grids.high) for grids in fitted])
    return [BlockGrid(step, offset, low, high) for step, offset in zip(steps, offsets, strict=True)]
