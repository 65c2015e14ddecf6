"""The I types of ggml: the magnitudes of 4 or 8 neighbouring weights come from a table of grid points.

In a block, a weight is

    d · steps        steps = s_j · grid point · sign, for sub-block j

The steps are integers or multiples of 1/8, which float32 holds exactly. IQ4_NL and IQ4_XS have a table of 16 single
values instead. The tables are those of the package gguf.

Source: ggml-common.h of llama.cpp, and `quants.py` of gguf-py.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

ITypeName = Literal["IQ4_NL", "IQ4_XS", "IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS"]


def _table_of(type_name: str) -> Any:
    """The class of a type in the package gguf, with its tables."""
    import gguf.quants  # optional package

    return getattr(gguf.quants, type_name)


@lru_cache(maxsize=32)
def _grid(type_name: str, device: torch.device) -> Tensor:
    """The grid points of a type, float32 (points, 4 or 8)."""
    of_type = _table_of(type_name)
    of_type.init_grid()
    return torch.tensor(of_type.grid).flatten(0, -2).to(device)


@lru_cache(maxsize=8)
def _sign_bytes(device: torch.device) -> Tensor:
    """The signs of 8 weights as bits, for each of the 128 stored numbers."""
    return torch.tensor(list(_table_of("IQ2_XXS").ksigns), dtype=torch.uint8, device=device)


@lru_cache(maxsize=8)
def _single_values(device: torch.device) -> Tensor:
    """The 16 values of IQ4_NL and IQ4_XS."""
    return torch.tensor(_table_of("IQ4_NL").kvalues, dtype=torch.float32, device=device)


def _bits(data: Tensor, *, width: int, count: int) -> Tensor:
    """The first `count` fields of `width` bits of every number (…), from the lowest bits on, as (…, count)."""
    shifts = torch.arange(0, width * count, width, device=data.device, dtype=data.dtype)
    return (data.unsqueeze(-1) >> shifts) & (2**width - 1)


def _words(data: Tensor, num_bytes: int) -> Tensor:
    """Little-endian numbers of `num_bytes` bytes each, int64, of uint8 (…, bytes)."""
    groups = data.unflatten(-1, (-1, num_bytes)).long()
    return sum((groups[..., index] << 8 * index for index in range(num_bytes)), torch.zeros_like(groups[..., 0]))


def _signs(bytes_of_signs: Tensor) -> Tensor:
    """1 or −1 for every bit of uint8 (…), as float32 (…, 8). A bit that is set is −1."""
    return 1 - 2 * _bits(bytes_of_signs.long(), width=1, count=8).float()


def _halves_of_bytes(data: Tensor) -> Tensor:
    """The low and the high four bits of every byte, (…, 2 · bytes)."""
    return _bits(data.long(), width=4, count=2).flatten(-2)


def _eight_with_seven_bit_signs(points: Tensor, words: Tensor, *, factor: float) -> Tensor:
    """Steps of IQ2_XXS and IQ3_XXS. `points` are (…, groups, 32); `words` (…, groups) have signs and a scale."""
    signs = _signs(_sign_bytes(points.device)[_bits(words, width=7, count=4)]).flatten(-2)  # (…, groups, 32)
    scale = (0.5 + (words >> 28).float()) * factor
    return points * signs * scale.unsqueeze(-1)


def _iq2_xxs(data: Tensor) -> Tensor:
    words = _words(data, 4).unflatten(-1, (-1, 2))
    points = _grid("IQ2_XXS", data.device)[_bits(words[..., 0], width=8, count=4)].flatten(-2)
    return _eight_with_seven_bit_signs(points, words[..., 1], factor=0.25).flatten(-2)


def _iq3_xxs(data: Tensor) -> Tensor:
    codes, words = data.split([64, 32], -1)
    points = _grid("IQ3_XXS", data.device)[codes.long()].flatten(-2).unflatten(-1, (-1, 32))
    return _eight_with_seven_bit_signs(points, _words(words, 4), factor=0.5).flatten(-2)


def _iq2_xs(data: Tensor) -> Tensor:
    codes, scales = data.split([64, 8], -1)
    words = _words(codes, 2)
    points = _grid("IQ2_XS", data.device)[words & 511] * _signs(_sign_bytes(data.device)[words >> 9])
    return _sixteen(points.flatten(-2), scales)


def _iq2_s(data: Tensor) -> Tensor:
    low, signs, high, scales = data.split([32, 32, 8, 8], -1)
    codes = low.long() | _bits(high.long(), width=2, count=4).flatten(-2) << 8
    points = _grid("IQ2_S", data.device)[codes] * _signs(signs)
    return _sixteen(points.flatten(-2), scales)


def _sixteen(points: Tensor, scales: Tensor) -> Tensor:
    """Steps of sub-blocks of 16 weights with scales of four bits."""
    factors = (0.5 + _halves_of_bytes(scales).float()) * 0.25
    return (points.unflatten(-1, (-1, 16)) * factors.unsqueeze(-1)).flatten(-2)


def _iq3_s(data: Tensor) -> Tensor:
    low, high, signs, scales = data.split([64, 8, 32, 4], -1)
    codes = low.long() | _bits(high.long(), width=1, count=8).flatten(-2) << 8
    points = _grid("IQ3_S", data.device)[codes].flatten(-2) * _signs(signs).flatten(-2)
    factors = 1 + 2 * _halves_of_bytes(scales).float()
    return (points.unflatten(-1, (-1, 32)) * factors.unsqueeze(-1)).flatten(-2)


def _low_then_high(data: Tensor) -> Tensor:
    """Values of 32 weights from 16 bytes: the low halves of all bytes first, then the high ones."""
    codes = _bits(data.unflatten(-1, (-1, 16)).long(), width=4, count=2).transpose(-1, -2)
    return _single_values(data.device)[codes].flatten(-3)


def _iq4_nl(data: Tensor) -> Tensor:
    return _low_then_high(data)


def _iq4_xs(data: Tensor) -> Tensor:
    high, low, codes = data.split([2, 4, 128], -1)
    scales = _halves_of_bytes(low) | _bits(_words(high, 2), width=2, count=8).flatten(-2) << 4
    return (_low_then_high(codes).unflatten(-1, (-1, 32)) * (scales - 32).float().unsqueeze(-1)).flatten(-2)


@dataclass(frozen=True)
class IType:
    """A block has `num_weights` weights in `num_bytes` bytes, the first two of which are d in float16.

    `steps` decodes the other bytes, uint8 (…, num_bytes − 2), to float32 (…, num_weights). `number` is that of the type
    in ggml.
    """

    number: int
    num_weights: int
    num_bytes: int
    steps: Callable[[Tensor], Tensor]


I_TYPES: Mapping[str, IType] = {
    "IQ4_NL": IType(20, 32, 18, _iq4_nl),
    "IQ4_XS": IType(23, 256, 136, _iq4_xs),
    "IQ3_S": IType(21, 256, 110, _iq3_s),
    "IQ3_XXS": IType(18, 256, 98, _iq3_xxs),
    "IQ2_S": IType(22, 256, 82, _iq2_s),
    "IQ2_XS": IType(17, 256, 74, _iq2_xs),
    "IQ2_XXS": IType(16, 256, 66, _iq2_xxs),
}
