"""Searches the grids of GGUF block types for the least weighted squared error of each block.

This works as in `range_search`: it tries smaller ranges, and the best scale and offset for the codes of a range have a
closed form.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from evopress.compressors.range_search import TILE, relative_powers
from evopress.weights.block_grids import BlockGrid, BlockType, fit_blocks, grid_of_lanes, half

FACTORS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
"""Factors on both ends of the range."""

DIFFERENT_FACTORS = ((1.0, 0.8), (0.8, 1.0), (0.9, 0.7), (0.7, 0.9))
"""Factors on the lower and the upper end, for types with an offset."""


def search_blocks(weight: Tensor, power: Tensor, *, types: Sequence[BlockType]) -> BlockGrid:
    """The grids of one block of columns. `weight` is (32, lanes), with lanes ordered by type, then row.

    `power` (32,) is the mean square of each column's inputs, up to a common factor.
    """
    p = relative_powers(power.to(weight.dtype)).unsqueeze(1)
    parts = weight.unflatten(1, (len(types), -1)).unbind(1)
    at_once = max(1, TILE // len(weight)) if weight.device.type == "cpu" else weight.shape[1]
    fitted = [
        _search(w.contiguous(), p, kind)
        for part, kind in zip(parts, types, strict=True)
        for w in part.split(at_once, 1)
    ]
    scale, offset = (torch.cat(tensors) for tensors in zip(*fitted, strict=True))
    return grid_of_lanes(scale, offset, types=types)


def _search(w: Tensor, p: Tensor, kind: BlockType) -> tuple[Tensor, Tensor]:
    """The best scales and offsets, both (rows,), for w (32, rows)."""
    weighted = w * p
    total, energy = p.sum(), weighted.sum(0)
    best_scale = best_offset = least = torch.zeros_like(energy)
    for candidate, (scale, offset) in enumerate(_ranges(w, kind)):
        inverse = torch.where(scale == 0, 0.0, scale.reciprocal())
        q = ((w - offset) * inverse).round_().clamp_(kind.low, kind.high)
        qw, qq, q1 = (weighted * q).sum(0), (q.square() * p).sum(0), (q * p).sum(0)
        if kind.has_offset:
            determinant = qq * total - q1.square()
            is_solvable = determinant > 1e-6 * qq * total
            solved = (qw * total - q1 * energy) / determinant
            scale = half(torch.where(is_solvable, solved, scale))
            offset = half((energy - scale * q1) / total)
        else:
            scale = half(torch.where(qq > 0, qw / qq, scale))
        error = scale * (scale * qq - 2 * qw) + offset * (offset * total + 2 * scale * q1 - 2 * energy)
        is_better = error < least if candidate else torch.ones_like(error, dtype=torch.bool)
        best_scale = torch.where(is_better, scale, best_scale)
        best_offset = torch.where(is_better, offset, best_offset)
        least = torch.where(is_better, error, least)
    return best_scale, best_offset


def _ranges(w: Tensor, kind: BlockType) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the scales and offsets, both (rows,), to try for w (32, rows), beginning with the reference quantiser's."""
    grid = fit_blocks(w, [kind])
    yield grid.scale, grid.offset
    if kind.has_offset:
        low, high = w.amin(0), w.amax(0)
        middle = (low + high) / 2
        for shrink_low, shrink_high in (*((shrink, shrink) for shrink in FACTORS[1:]), *DIFFERENT_FACTORS):
            first, last = middle + shrink_low * (low - middle), middle + shrink_high * (high - middle)
            yield half((last - first) / kind.high), half(first)
    else:
        for shrink in FACTORS:
            if shrink < 1:
                yield half(grid.scale * shrink), grid.offset
            yield half(grid.scale * shrink * kind.low / kind.high), grid.offset  # the largest weight at the other end
