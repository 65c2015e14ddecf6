"""Uniform quantisation grids: fit them to weights, and round weights to them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """The values scale·(code − zero) for codes 0 … max_code; all broadcast against each other.

    `scale` is positive and exact in the type that it is stored in, so weights are rounded to the grid that is stored.
    """

    scale: Tensor
    zero: Tensor
    max_code: Tensor

    def encode(self, weight: Tensor) -> Tensor:
        """Nearest code of every weight, as float32; `weight` broadcasts against the grid."""
        codes = (weight / self.scale).round_().add_(self.zero).clamp_(min=0)
        return torch.minimum(codes, self.max_code, out=codes)

    def decode(self, codes: Tensor) -> Tensor:
        return (codes - self.zero).mul_(self.scale)

    def leave_error(self, weight: Tensor, steps: Tensor) -> None:
        """Replace `weight` by its rounding error: the weight minus its rounded value.

        Both arguments are overwritten; `steps` becomes the codes minus the zero point. The result is the same as with
        `encode` and `decode`, but takes half as many passes over the memory.
        """
        torch.div(weight, self.scale, out=steps).round_().clamp_(*self._bounds)
        weight.addcmul_(steps, self.scale, value=-1)

    @cached_property
    def _bounds(self) -> tuple[Tensor, Tensor]:
        return -self.zero, self.max_code - self.zero


def max_codes(bits: Sequence[int], *, rows: int, device: torch.device) -> Tensor:
    """2^b − 1 for every lane, float32, (levels·rows,); lanes are ordered by level, then row."""
    return torch.tensor([2.0**width - 1 for width in bits], device=device).repeat_interleave(rows)


def fit_grid(weight: Tensor, max_code: Tensor, *, symmetric: bool, scale_dtype: torch.dtype) -> Grid:
    """The grid of every group and lane, from the smallest to the largest weight.

    Args:
        weight: (…, group, lanes); a lane is one row at one level. The range always includes 0.
        max_code: 2^b − 1 per lane, (lanes,).
        symmetric: let the range be ±max|w| and the zero point 2^(b−1); otherwise the zero point is fitted.
        scale_dtype: type in which the scales are stored; they are rounded to it before anything uses them.

    Returns:
        scale and zero of shape (…, lanes), in the weights' type. A group of zeros has scale 1 and decodes to zeros.
    """
    low, high = range_of(weight, symmetric=symmetric)
    return grid_of_range(low, high, max_code=max_code, symmetric=symmetric, scale_dtype=scale_dtype)


def range_of(weight: Tensor, *, symmetric: bool) -> tuple[Tensor, Tensor]:
    """The range of the weights (…, group, lanes), extended to contain 0; ±max|w| if `symmetric`."""
    low = weight.amin(-2).clamp_(max=0)
    high = weight.amax(-2).clamp_(min=0)
    if symmetric:
        high = torch.maximum(high, -low)
        low = -high
    return low, high


def grid_of_range(low: Tensor, high: Tensor, *, max_code: Tensor, symmetric: bool, scale_dtype: torch.dtype) -> Grid:
    """The grid from `low` ≤ 0 to `high` ≥ 0, both (…, lanes)."""
    scale = storable_scale(high / max_code - low / max_code, scale_dtype)
    zero = ((max_code + 1) / 2).expand_as(scale) if symmetric else (-low / scale).round_().minimum(max_code)
    return Grid(scale, zero, max_code)


def storable_scale(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The scale rounded to `dtype` and limited to its positive numbers; 1 where the scale is 0."""
    limits = torch.finfo(dtype)
    smallest = limits.smallest_normal * limits.eps  # subnormal: for layers of tiny weights, still better than 0
    stored = scale.clamp(smallest, limits.max).to(dtype).to(scale.dtype)
    return torch.where(scale > 0, stored, torch.ones_like(stored))
