"""Uniform quantisation grids: fit them to weights, round to them, and pack codes densely into 32-bit words."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True)
class Grid:
    """The values scale·(code − zero) for codes 0 … max_code; all broadcast against each other.

    `scale` is positive and exactly representable in the type it is stored in, so rounding sees the stored grid.
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
        """Subtract from `weight` what it is rounded to; `steps` becomes its codes less the zero point.

        The same as encoding and decoding, in half as many passes.
        """
        torch.div(weight, self.scale, out=steps).round_().clamp_(*self._bounds)
        weight.addcmul_(steps, self.scale, value=-1)

    @cached_property
    def _bounds(self) -> tuple[Tensor, Tensor]:
        return -self.zero, self.max_code - self.zero


def max_codes(bits: Sequence[int], *, rows: int, device: torch.device) -> Tensor:
    """2^b − 1 of every lane, float32, (levels·rows,), for lanes ordered by level, then row."""
    return torch.tensor([2.0**width - 1 for width in bits], device=device).repeat_interleave(rows)


def fit_grid(weight: Tensor, max_code: Tensor, *, symmetric: bool, scale_dtype: torch.dtype) -> Grid:
    """The min/max grid of every group and lane.

    Args:
        weight: (…, group, lanes); a lane is one row at one level. The range always includes 0.
        max_code: 2^b − 1 per lane, (lanes,).
        symmetric: let the range be ±max|w| and the zero point 2^(b−1); otherwise the zero point is fitted.
        scale_dtype: type in which the scales are stored; they are rounded to it before anything uses them.

    Returns:
        scale and zero of shape (…, lanes), in the weights' type. A group of zeros has scale 1 and decodes to zeros.
    """
    low = weight.amin(-2).clamp_(max=0)
    high = weight.amax(-2).clamp_(min=0)
    if symmetric:
        high = torch.maximum(high, -low)
        low = -high
    scale = _storable((high / max_code - low / max_code), scale_dtype)
    zero = ((max_code + 1) / 2).expand_as(scale) if symmetric else (-low / scale).round_().minimum(max_code)
    return Grid(scale, zero, max_code)


def _storable(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounded to `dtype`, at least its smallest positive number, at most its largest; 1 where the range was 0."""
    limits = torch.finfo(dtype)
    smallest = limits.smallest_normal * limits.eps  # subnormal: small layers are still better off with it than with 0
    stored = scale.clamp(smallest, limits.max).to(dtype).to(scale.dtype)
    return torch.where(scale > 0, stored, torch.ones_like(stored))


def num_words(count: int, bits: int) -> int:
    """32-bit words that hold `count` codes."""
    return -(-count * bits // 32)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack uint8 codes (rows, cols) into int32 (rows, ⌈cols·bits/32⌉).

    Element i of a row occupies bits i·bits … of the row's little-endian bit string, and may straddle words.
    Source: `pack-quantized` of compressed-tensors 0.18 and later.
    """
    rows, cols = codes.shape
    eights = pad(codes, (0, -cols % 32)).contiguous().view(torch.int64)  # 8 codes in 8 bytes; 32 of them fill words
    for count in (1, 2, 4):  # runs of that many codes, the second of each two is moved up to the first
        first, second = _runs(count, bits)
        moved = (eights >> (8 - bits) * count).bitwise_and_(second >> (8 - bits) * count)
        eights = moved.bitwise_or_(eights & first)
    octets = eights.view(torch.uint8).view(-1, 8)[:, :bits].reshape(rows, -1)  # 8 codes in `bits` bytes
    return octets.view(torch.int32)[:, : num_words(cols, bits)].contiguous()


def unpack(packed: Tensor, bits: int, cols: int) -> Tensor:
    """Undo `pack`: int32 (rows, words) to uint8 (rows, cols)."""
    rows = packed.shape[0]
    octets = packed.contiguous().view(torch.uint8)
    octets = pad(octets, (0, -(-cols // 8) * bits - octets.shape[1]))
    eights = pad(octets.reshape(-1, bits), (0, 8 - bits)).view(torch.int64)
    for count in (4, 2, 1):
        first, second = _runs(count, bits)
        moved = (eights << (8 - bits) * count).bitwise_and_(second)
        eights = eights.bitwise_and_(first).bitwise_or_(moved)
    return eights.view(torch.uint8).view(rows, -1)[:, :cols]


def _runs(count: int, bits: int) -> tuple[int, int]:
    """Masks over 64 bits, in which a code has a byte or less: every other run of `count` codes, from the first, second.

    Codes of 8 bits reach into the sign of an int64, but are never moved.
    """
    run, distance = (1 << count * bits) - 1, 16 * count
    first = sum(run << place for place in range(0, 64, distance))
    second = first << 8 * count
    return first, second - (1 << 64) if second >> 63 else second
