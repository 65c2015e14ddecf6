"""Random weights in K types."""

from typing import NamedTuple

import torch
from torch import Tensor

from evopress.weights.k_types import K_TYPES, SUPERBLOCK
from evopress.weights.kquants import KWeight


class Parts(NamedTuple):
    """Codes (rows, cols), scales and minima (rows, superblocks, sub-blocks), d and dmin (rows, superblocks)."""

    codes: Tensor
    scales: Tensor
    minima: Tensor
    d: Tensor
    dmin: Tensor


def random_parts(name: str, *, rows: int = 3, superblocks: int = 2) -> Parts:
    """Parts of a weight of the type `name`, with all their values. The dense weights are about 1."""
    kind, generator = K_TYPES[name], torch.Generator().manual_seed(0)
    sub_blocks = rows, superblocks, kind.num_sub_blocks
    factors = (torch.rand(2, rows, superblocks, generator=generator) + 0.5) / kind.scale_high
    d, dmin = (factors[0] / kind.high).half().float(), (factors[1] / 2).half().float()
    return Parts(
        torch.randint(kind.low, kind.high + 1, (rows, superblocks * SUPERBLOCK), generator=generator),
        torch.randint(kind.scale_low, kind.scale_high + 1, sub_blocks, generator=generator),
        torch.randint(kind.scale_high + 1, sub_blocks, generator=generator) * kind.has_minima,
        d,
        dmin * kind.has_minima,
    )


def k_weight(name: str, parts: Parts) -> KWeight:
    codes, scales, minima, d, dmin = parts
    return KWeight.from_codes(codes, scales.flatten(1), minima=minima.flatten(1), d=d, dmin=dmin, type_name=name)
