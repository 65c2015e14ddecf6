"""How a superblock of a K type stores the integer scales of its sub-blocks, and the minima if it has them.

All numbers are uint8 (…, sub-blocks); negative scales are stored with a number added. Source: ggml-quants.c of
llama.cpp.
"""

import torch
from torch import Tensor

from evopress.weights.bit_planes import BitPlane

Numbers = tuple[Tensor, ...]
"""The scales, and in types with minima also the minima."""

HALVES = BitPlane(bits=4, place=0, run=8)
QUARTERS = BitPlane(bits=2, place=4, run=4)


def read_four_bits(data: Tensor) -> Numbers:
    """From a byte per sub-block: the scale in the low half, the minimum in the high half."""
    return data & 15, data >> 4


def write_four_bits(numbers: Numbers) -> Tensor:
    scales, minima = numbers
    return scales | minima << 4


def read_six_bits(data: Tensor) -> Numbers:
    """From 12 bytes: the low four bits of 16 scales in 8 bytes, the high two bits in 4."""
    return (HALVES.unpack(data[..., :8]) | QUARTERS.unpack(data[..., 8:]),)


def write_six_bits(numbers: Numbers) -> Tensor:
    (scales,) = numbers
    return torch.cat([HALVES.pack(scales), QUARTERS.pack(scales)], -1)


def read_six_bit_pairs(data: Tensor) -> Numbers:
    """From 12 bytes: 8 scales and 8 minima.

    The low six bits of the first 4 bytes are scales 0 to 3, those of the next 4 bytes minima 0 to 3. The last 4 bytes
    have the low four bits of scales and minima 4 to 7, whose high two bits are the high bits of the first 8 bytes.
    """
    first, second, last = data.split(4, -1)
    scales = torch.cat([first & 63, (last & 15) | (first >> 6) << 4], -1)
    minima = torch.cat([second & 63, (last >> 4) | (second >> 6) << 4], -1)
    return scales, minima


def write_six_bit_pairs(numbers: Numbers) -> Tensor:
    scales, minima = (part.split(4, -1) for part in numbers)
    first, second = (low | (high >> 4) << 6 for low, high in (scales, minima))
    return torch.cat([first, second, (scales[1] & 15) | (minima[1] & 15) << 4], -1)


def read_bytes(data: Tensor) -> Numbers:
    """From a byte per sub-block. ggml reads the bytes as signed: this adds 128."""
    return (data ^ 128,)


def write_bytes(numbers: Numbers) -> Tensor:
    return numbers[0] ^ 128
