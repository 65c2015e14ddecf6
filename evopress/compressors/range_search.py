"""Searches for the range of each quantisation grid that gives the least squared error of its group of weights.

The smallest and the largest weight of a group make a range that holds every weight, but its steps are wide. A smaller
range clips a few weights and rounds all others more finely. Both ends are shrunk, first together, then apart. The best
scale for the codes of a range has a closed form, so few ranges are enough:

    s = Σ p·w·q / Σ p·q²     minimises     Σ p·(w − s·q)²,     which is then     Σ p·w² − (Σ p·w·q)² / Σ p·q²

where w are the weights of a group, q their codes minus the zero point, and p the power of each column's inputs.
"""

import torch
from torch import Tensor

from evopress.weights.grids import Grid, grid_of_range, range_of, storable_scale

FIRST_FACTORS = ((1.0, 1.0), (0.83, 0.83), (0.67, 0.67), (0.52, 0.52))
"""Factors on the lower and the upper end of the range."""

SECOND_FACTORS = ((0.82, 1.0), (1.0, 0.82), (1.18, 1.0), (1.0, 1.18))
"""More factors, on the ends of the best of these ranges."""

SECOND_FACTORS_IF_SYMMETRIC = ((0.92, 0.92), (1.08, 1.08))
"""The same for ranges whose ends are ±max|w|."""

TILE = 2**16
"""Weights that are searched at once on a CPU, so that they stay in its cache. This affects only the speed."""


def search_grid(weight: Tensor, max_code: Tensor, *, power: Tensor, symmetric: bool, scale_dtype: torch.dtype) -> Grid:
    """The grid of every group and lane. Of the ranges that are tried, its range has the least weighted squared error.

    Args:
        weight: (…, group, lanes); a lane is one row at one level.
        max_code: 2^b − 1 per lane, (lanes,).
        power: mean square of each column's inputs, up to a factor, (…, group). If all powers of a group are 0, each
            counts as 1.
        symmetric: start from the ends ±max|w|, shrink both together, and use the zero point 2^(b−1).
        scale_dtype: type in which the scales are stored.

    Returns:
        scale and zero of shape (…, lanes), in the weights' type. A group of zeros has scale 1 and decodes to zeros.
    """
    groups = weight.reshape(-1, *weight.shape[-2:])
    powers = relative_powers(power.to(weight.dtype)).reshape(len(groups), -1, 1)
    num_lanes = weight.shape[-1]
    at_once = max(1, TILE // weight.shape[-2]) if weight.device.type == "cpu" else num_lanes
    scale, zero = groups.new_empty(2, len(groups), num_lanes)
    for group, (w, p) in enumerate(zip(groups, powers, strict=True)):
        for first in range(0, num_lanes, at_once):
            lanes = slice(first, first + at_once)
            grid = _search(w[:, lanes], p, max_code[lanes], symmetric=symmetric, scale_dtype=scale_dtype)
            scale[group, lanes], zero[group, lanes] = grid.scale, grid.zero
    shape = (*weight.shape[:-2], num_lanes)
    return Grid(scale.view(shape), zero.view(shape), max_code)


def relative_powers(power: Tensor) -> Tensor:
    """`power` (…, group) with a maximum of 1 in each group, so that products with squared weights do not overflow."""
    return (power / power.amax(-1, keepdim=True)).nan_to_num_(1.0)  # 0 / 0


def _search(w: Tensor, p: Tensor, max_code: Tensor, *, symmetric: bool, scale_dtype: torch.dtype) -> Grid:
    """The grid of one group w (group, lanes) whose columns have the powers p (group, 1)."""
    low, high = range_of(w, symmetric=symmetric)
    weighted = w * p
    # (5, lanes): the explained part of Σ p·w², the scale, the zero point, and the factors on both ends
    best = torch.stack([torch.full_like(low, -torch.inf), low, low, torch.ones_like(low), torch.ones_like(low)])
    for factors in (FIRST_FACTORS, SECOND_FACTORS_IF_SYMMETRIC if symmetric else SECOND_FACTORS):
        around_low, around_high = best[3:]
        for factor_low, factor_high in factors:
            shrink_low, shrink_high = around_low * factor_low, around_high * factor_high
            grid = grid_of_range(
                low * shrink_low, high * shrink_high, max_code=max_code, symmetric=symmetric, scale_dtype=scale_dtype
            )
            scale, explained = _solve_scale(w, weighted, p, grid, scale_dtype)
            candidate = torch.stack([explained, scale, grid.zero, shrink_low, shrink_high])
            best = torch.where(explained > best[0], candidate, best)
    zero = best[2]
    scale, _ = _solve_scale(w, weighted, p, Grid(best[1], zero, max_code), scale_dtype)
    return Grid(scale, zero, max_code)


def _solve_scale(w: Tensor, weighted: Tensor, p: Tensor, grid: Grid, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The best scale for the codes that `grid` gives, and Σ p·w² minus the weighted squared error, both (lanes,)."""
    q = (w * grid.scale.reciprocal()).round_()
    q = torch.minimum(torch.maximum(q, -grid.zero, out=q), grid.max_code - grid.zero, out=q)
    projection = (weighted * q).sum(0)
    norm = q.square_().mul_(p).sum(0)
    scale = torch.where(norm > 0, storable_scale(projection / norm, dtype), grid.scale)
    return scale, scale * (2 * projection - scale * norm)
