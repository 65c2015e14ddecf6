"""Searches the grids of K types for the least squared error of the weights, weighted by the power of their inputs.

With the step a = d·s and the offset o = −dmin·m, a sub-block of weights w has the error

    Σ p·(w − a·q − o)²  =  Σ p·w² + a²·Σ p·q² + 2a·o·Σ p·q + o²·Σ p − 2a·Σ p·q·w − 2o·Σ p·w

where q are the codes and p the powers of the inputs. Once the sums of some codes are known, other a and o cost little::

    for every sub-block:                                                                              fit_sub_blocks
        of the a and o of several ranges, each solved for its codes, take the best
    of several d and dmin, take those for which it costs least to round all a and o to multiples            _factors
    repeat:
        for every sub-block: of s, m and their neighbours, each with its nearest codes, take the best       _rescale
        solve d and dmin for s, m and the codes of all sub-blocks                                           _refit
"""

from functools import reduce
from itertools import product

import torch
from torch import Tensor

from evopress.compressors.k_fit import KBlocks, better, fit_sub_blocks, inverse
from evopress.compressors.range_search import relative_powers
from evopress.weights.half_bytes import half
from evopress.weights.k_grids import KGrid
from evopress.weights.k_types import K_TYPES, SUPERBLOCK

FACTORS = (0.92, 0.96, 1.0, 1.04, 1.08, 1.12)
"""The d and dmin to try, as shares of those that just reach the largest step and the lowest offset."""

NEIGHBOURS = tuple(product((-1, 0, 1), repeat=2))
"""Changes of s and m that are tried together."""

SYMMETRIC_NEIGHBOURS = tuple((change, 0) for change in range(-3, 4))
"""The same for types without minima."""

ROUNDS = 3
"""How often s, m and codes are chosen for d and dmin, and the other way round."""

LEAST_POWER = 1e-6
"""The smallest power of an input, as a share of the largest in its superblock. So no sub-block is without power."""

SMALLEST = 2.0**-24
"""The smallest float16. Factors that are tried have at least this value, so that tiny weights do not become 0."""

CPU_TILE, GPU_TILE = 2**18, 2**24
"""Weights that are searched at once, for the cache of a CPU and the memory of a GPU. This affects only the speed."""


def search_superblocks(weight: Tensor, power: Tensor, *, type_name: str) -> KGrid:
    """The grids of all superblocks of weight (cols, rows), float32.

    `power` (cols,) is the mean square of each column's inputs, up to a factor. A superblock whose powers are all 0 gets
    equal powers.
    """
    rows = weight.shape[1]
    tile = CPU_TILE if weight.device.type == "cpu" else GPU_TILE
    rows_at_once = max(1, min(rows, tile // SUPERBLOCK))
    cols_at_once = max(1, tile // (SUPERBLOCK * rows_at_once)) * SUPERBLOCK
    powers = relative_powers(power.to(weight.dtype).view(-1, SUPERBLOCK)).clamp_(min=LEAST_POWER).flatten()
    kind = K_TYPES[type_name]

    def blocks(columns: Tensor, its_powers: Tensor) -> KBlocks:
        sizes = (-1, kind.num_sub_blocks, kind.sub_block)
        return KBlocks(columns.unflatten(0, sizes), its_powers.unflatten(0, sizes).unsqueeze(-1), kind)

    tiles = [
        torch.cat([_search(blocks(w, p)) for w in columns.split(rows_at_once, 1)], -1)
        for columns, p in zip(weight.split(cols_at_once), powers.split(cols_at_once), strict=True)
    ]
    _, d, dmin, scales, minima = torch.cat(tiles, 1)
    return KGrid(type_name, scales, minima, d[:, :1], dmin[:, :1])


def _search(blocks: KBlocks) -> Tensor:
    """Error, d, dmin, scales and minima, (5, superblocks, sub-blocks, rows)."""
    fitted = fit_sub_blocks(blocks)
    d, dmin = _factors(blocks, fitted)
    scales = _rounded_scales(blocks, fitted, d=d)
    minima = _rounded_minima(blocks, blocks.best_offset(d * scales, sums=fitted[3:]), dmin=dmin)
    rounds = []
    for _ in range(ROUNDS):
        error, scales, minima, *sums = _rescale(blocks, scales, minima, d=d, dmin=dmin)
        rounds.append(torch.stack(torch.broadcast_tensors(error.sum(1, keepdim=True), d, dmin, scales, minima)))
        d, dmin = _refit(blocks, scales, minima, sums=torch.stack(sums))
    return reduce(better, rounds)


def _factors(blocks: KBlocks, fitted: Tensor) -> tuple[Tensor, Tensor]:
    """d and dmin, (superblocks, 1, rows), for which rounding the fitted steps and offsets costs the least."""
    steps, offsets, sums = fitted[1], fitted[2], fitted[3:]
    largest, lowest = steps.abs().amax(1, keepdim=True), -offsets.amin(1, keepdim=True)
    candidates = []
    for d in _candidates(largest / blocks.kind.scale_high):
        a = d * _rounded_scales(blocks, fitted, d=d)
        best = blocks.best_offset(a, sums=sums)
        least = blocks.error(a, best, sums=sums).sum(1, keepdim=True)
        for dmin in _candidates(lowest / blocks.kind.scale_high) if blocks.kind.has_minima else (least * 0,):
            o = -dmin * _rounded_minima(blocks, best, dmin=dmin)
            excess = (o - best).square_().mul_(blocks.sum_p).sum(1, keepdim=True)
            candidates.append(torch.stack([least + excess, d, dmin]))
    _, d, dmin = reduce(better, candidates)
    return d, dmin


def _candidates(reaching: Tensor) -> list[Tensor]:
    """Values of d or dmin to try, given the one that just reaches the largest step or the lowest offset."""
    return [half((factor * reaching).clamp_(min=SMALLEST)) for factor in FACTORS]


def _rounded_scales(blocks: KBlocks, fitted: Tensor, *, d: Tensor) -> Tensor:
    return (fitted[1] * inverse(d)).round_().clamp_(blocks.kind.scale_low, blocks.kind.scale_high)


def _rounded_minima(blocks: KBlocks, offsets: Tensor, *, dmin: Tensor) -> Tensor:
    return (offsets * -inverse(dmin)).round_().clamp_(0, blocks.kind.scale_high)


def _rescale(blocks: KBlocks, scales: Tensor, minima: Tensor, *, d: Tensor, dmin: Tensor) -> Tensor:
    """Error, scale, minimum and sums of the best of each sub-block's neighbours."""
    kind = blocks.kind

    def neighbour(change: int, change_min: int) -> Tensor:
        s = (scales + change).clamp_(kind.scale_low, kind.scale_high)
        m = (minima + change_min).clamp_(0, kind.scale_high)
        sums = blocks.sums(d * s, -dmin * m)
        return torch.stack([blocks.error(d * s, -dmin * m, sums=sums), s, m, *sums])

    changes = NEIGHBOURS if kind.has_minima else SYMMETRIC_NEIGHBOURS
    return reduce(better, (neighbour(*change) for change in changes))


def _refit(blocks: KBlocks, scales: Tensor, minima: Tensor, *, sums: Tensor) -> tuple[Tensor, Tensor]:
    """The d and dmin, (superblocks, 1, rows), that minimise the error for these scales, minima and sums of codes."""

    def total(*factors: Tensor) -> Tensor:
        return reduce(torch.mul, factors).sum(1, keepdim=True)

    sum_pqq, sum_pqw, sum_pq = sums
    A, b = total(scales, scales, sum_pqq), total(scales, sum_pqw)
    without_minima = torch.where(A > 0, b / A, 0.0)
    C, B, c = total(minima, minima, blocks.sum_p), total(scales, minima, sum_pq), total(minima, blocks.sum_pw)
    determinant = A * C - B.square()
    is_solvable = determinant > 1e-6 * A * C
    d = torch.where(is_solvable, (b * C - B * c) / determinant, without_minima)
    dmin = torch.where(is_solvable, (B * b - A * c) / determinant, 0.0)
    return half(d), half(dmin.clamp_(min=0))
