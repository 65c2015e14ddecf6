"""Refits the scales of all groups of a row together, without changing the codes.

A row of rounded weights is ŵ = Σ_g s_g·c_g. Here s_g is the scale of group g, and c_g holds its codes minus the zero
point, with zeros in the columns of other groups. The scales with the least error (w − ŵ)ᵀ H (w − ŵ) solve a small
linear system:

    A s = b     A_gk = c_gᵀ H c_k     b_g = c_gᵀ H w
"""

import torch
from torch import Tensor

from evopress.weights.grids import storable_scale

TILE = 2**19
"""Weights whose systems are built at once on a CPU, so that they stay in its cache. This affects only the speed."""


def refit_scales(
    rows: Tensor, steps: Tensor, *, scale: Tensor, H: Tensor, scale_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """New scales of every lane, and its error (w − ŵ)ᵀ H (w − ŵ).

    A lane whose error would not fall, or whose scales would not all be positive, keeps its scales.

    Args:
        rows: Dense weights (rows, cols).
        steps: Codes minus zero points, as floats, (cols, lanes), with lanes ordered by level, then row.
        scale: (groups, lanes), as stored.
        H: Hessian (cols, cols), positive definite. Its entries must be small enough that sums stay within the range of
            the type.
        scale_dtype: Type in which the scales are stored.

    Returns:
        Scales (groups, lanes) and errors (lanes,).
    """
    num_lanes = steps.shape[1]
    HW = H @ rows.t()
    energy = (rows.t() * HW).sum(0)
    at_once = num_lanes if steps.device.type != "cpu" else max(1, TILE // len(steps))
    parts = []
    for first in range(0, num_lanes, at_once):
        lanes = slice(first, first + at_once)
        row_of_lane = torch.arange(num_lanes, device=rows.device)[lanes] % len(rows)
        A, b = _systems(steps[:, lanes], HW[:, row_of_lane], H, num_groups=len(scale))
        parts.append(_refit(A, b, energy[row_of_lane], scale[:, lanes], scale_dtype))
    return torch.cat([part for part, _ in parts], 1), torch.cat([errors for _, errors in parts])


def _systems(steps: Tensor, HW: Tensor, H: Tensor, *, num_groups: int) -> tuple[Tensor, Tensor]:
    """A (lanes, groups, groups) and b (lanes, groups)."""
    size = len(steps) // num_groups
    A = steps.new_empty(num_groups, num_groups, steps.shape[1])
    for group in range(num_groups):
        start = group * size
        product = H[start:, start : start + size] @ steps[start : start + size]
        A[group:, group] = A[group, group:] = product.mul_(steps[start:]).unflatten(0, (-1, size)).sum(1)
    b = (steps * HW).unflatten(0, (-1, size)).sum(1)
    return A.permute(2, 0, 1), b.t()


def _refit(A: Tensor, b: Tensor, energy: Tensor, scale: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Scales (groups, lanes) and errors (lanes,) from the systems of all lanes."""
    eye = torch.eye(A.shape[1], dtype=A.dtype, device=A.device)
    ridge = 1e-6 * A.diagonal(dim1=1, dim2=2).mean(1) + torch.finfo(A.dtype).tiny  # all-zero groups have zero rows
    L, failed = torch.linalg.cholesky_ex(A + ridge[:, None, None] * eye)
    old = scale.t()
    change = torch.cholesky_solve((b - (A @ old.unsqueeze(2)).squeeze(2)).unsqueeze(2), L).squeeze(2)
    new = storable_scale((old + change).clamp_(min=0), dtype)

    def error(s: Tensor) -> Tensor:
        return energy + (s * ((A @ s.unsqueeze(2)).squeeze(2) - 2 * b)).sum(1)

    new_error, old_error = error(new), error(old)
    is_better = (new_error < old_error) & (failed == 0) & (old + change > 0).all(1)
    return torch.where(is_better[:, None], new, old).t(), torch.where(is_better, new_error, old_error)
