"""Numbers of four bits, E2M1: 0, 0.5, 1, 1.5, 2, 3, 4 and 6 with a sign, two of them in a byte.

A code is the index of the magnitude in this list. The sign is bit 3. The first of two neighbours is in the low bits.

Source: OCP Microscaling Formats (MX) Specification 1.0, Section 5.3.3.
"""

from functools import cache

import torch
from torch import Tensor

MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)

LARGEST = MAGNITUDES[-1]


def round_to_fp4(x: Tensor) -> Tensor:
    """The nearest E2M1 number of every float32 number. Of two that are equally near, the one with an even code."""
    size = x.abs()
    step = 0.5 + 0.5 * (size >= 2) + (size >= 4)
    return (x / step).round_().mul_(step).clamp_(-LARGEST, LARGEST)


def pack_fp4(elements: Tensor) -> Tensor:
    """E2M1 numbers (rows, cols), with an even number of columns, as uint8 (rows, cols / 2)."""
    codes = _tables(elements.device)[0][(2 * elements + 2 * LARGEST).long()]
    return codes[:, 0::2] | (codes[:, 1::2] << 4)


def unpack_fp4(packed: Tensor) -> Tensor:
    """Undo `pack_fp4`, as float32 (rows, cols)."""
    pairs = _tables(packed.device)[1].index_select(0, packed.flatten().int())
    return pairs.view(packed.shape[0], -1)


@cache
def _tables(device: torch.device) -> tuple[Tensor, Tensor]:
    """The code of every half from −6 to 6, uint8 (25,); the two numbers of every byte, float32 (256, 2)."""
    numbers = [*MAGNITUDES, *(-magnitude for magnitude in MAGNITUDES)]
    codes = torch.zeros(int(4 * LARGEST) + 1, dtype=torch.uint8)
    for code, number in reversed(list(enumerate(numbers))):  # +0 comes last, so zero has the code 0
        codes[int(2 * number + 2 * LARGEST)] = code
    pairs = torch.tensor([[numbers[byte & 15], numbers[byte >> 4]] for byte in range(256)])
    return codes.to(device), pairs.to(device)
