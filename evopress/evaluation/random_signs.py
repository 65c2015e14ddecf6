"""Random signs that depend only on a seed and a position, so that every device draws the same ones where it needs them.

A 64-bit word of SplitMix64 gives the signs of 64 neighbours. All arithmetic is on integers, which wrap around.

Source: Steele, Lea and Flood, Fast splittable pseudorandom number generators, OOPSLA 2014.
"""

import torch
from jaxtyping import Int, Int8
from torch import Tensor

GENERATOR = "SplitMix64"
"""Part of the identity of results that depend on signs."""


def random_signs(
    shape: tuple[int, int], *, seed: int, draw: int, first_row: int, device: torch.device
) -> Int8[Tensor, "rows cols"]:
    """Independent signs, −1 or 1, for rows from `first_row` on. They do not depend on the number of rows.

    `seed` has at most 63 bits. Another `draw` has other signs.
    """
    rows, cols = shape
    words_per_row = -(-cols // 64)
    start = _mixed(_mixed(torch.tensor(seed)) + draw)
    first = first_row * words_per_row
    counters = torch.arange(first, first + rows * words_per_row, device=device)
    eights = _mixed(start + (counters + 1) * _GAMMA).view(torch.uint8)  # (rows · words · 8,)
    return _signs_of_bytes(device).index_select(0, eights.int()).view(torch.int8).view(rows, -1)[:, :cols]


def _signed(word: int) -> int:
    """The int64 with the bits of a word of 64 bits."""
    return word - 2**64 if word >= 2**63 else word


_GAMMA = _signed(0x9E3779B97F4A7C15)
_FACTORS = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def _mixed(words: Int[Tensor, "*words"]) -> Int[Tensor, "*words"]:
    words = (words ^ _shifted(words, 30)) * _FACTORS[0]
    words = (words ^ _shifted(words, 27)) * _FACTORS[1]
    return words ^ _shifted(words, 31)


def _shifted(words: Int[Tensor, "*words"], places: int) -> Int[Tensor, "*words"]:
    """Shift to the right, and fill with zeros. The operator of int64 fills with the sign."""
    return (words >> places) & (2 ** (64 - places) - 1)


def _signs_of_bytes(device: torch.device) -> Int[Tensor, " bytes"]:
    """The eight signs of each byte, as the int64 of which they are the bytes."""
    byte, place = torch.arange(256, device=device), torch.arange(8, device=device)
    bits = (byte[:, None] >> place) & 1
    return (2 * bits - 1).to(torch.int8).view(torch.int64).flatten()
