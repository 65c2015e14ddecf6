"""Searches the grids of GGUF block types for the least weighted squared error of each block.

This works as in `range_search`: it tries several ranges, and the best scale and offset for the codes of a range have a
closed form.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from evopress.compressors.range_search import TILE, relative_powers
from evopress.weights.block_grids import BlockGrid, BlockType, fit_blocks, grid_of_lanes, half

RANGES = (
    *((beyond, beyond) for beyond in (-0.25, 0.25, 0.5, 1.0, 1.5)),
    *((0.0, 0.5), (0.5, 0.0), (0.0, 1.0), (1.0, 0.0)),
)
"""For types with an offset: how far the smallest weight lies below the first code, and the largest above the last, in
steps."""

SYMMETRIC_RANGES = (-1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0)
"""For types without: how far the weight of the largest magnitude lies beyond the first or the last code, in steps."""

FACTORS = (0.75, 0.6, 0.5)
"""For types without an offset: more ranges, as shares of the largest magnitude."""


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
        shifted = w - offset if kind.has_offset else w
        q = (shifted * inverse).round_().clamp_(kind.low, kind.high)
        qw, pq = (weighted * q).sum(0), p * q
        qq = (pq * q).sum(0)
        if kind.has_offset:
            q1 = pq.sum(0)
            determinant = qq * total - q1.square()
            is_solvable = determinant > 1e-6 * qq * total
            solved = (qw * total - q1 * energy) / determinant
            scale = half(torch.where(is_solvable, solved, scale))
            offset = half((energy - scale * q1) / total)
            error = scale * (scale * qq - 2 * qw) + offset * (offset * total + 2 * scale * q1 - 2 * energy)
        else:
            scale = half(torch.where(qq > 0, qw / qq, scale))
            error = scale * (scale * qq - 2 * qw)
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
        for below, above in RANGES:
            step = (high - low) / (kind.high + below + above)
            yield half(step), half(low + below * step)
    else:
        furthest = w.gather(0, w.abs().argmax(0, keepdim=True))[0]
        for beyond in SYMMETRIC_RANGES:
            yield half(furthest / (kind.low - beyond)), grid.offset
            yield half(furthest / (kind.high + beyond)), grid.offset
        for factor in FACTORS:
            yield half(factor * furthest / kind.low), grid.offset
            yield half(factor * furthest / kind.high), grid.offset
