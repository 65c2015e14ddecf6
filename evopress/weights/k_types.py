"""The K types of ggml: superblocks of 256 weights whose scales are quantised too.

A superblock has sub-blocks of 16 or 32 weights. Sub-block j has an integer scale s_j, and in types with minima an
integer minimum m_j. The superblock has a float16 number d, and in types with minima a second one, d_m. A weight with
the code q is

    d·s_j·q − d_m·m_j

Source: ggml-common.h of llama.cpp.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from evopress.weights.bit_planes import BitPlane
from evopress.weights.k_scales import (
    Numbers,
    read_bytes,
    read_four_bits,
    read_six_bit_pairs,
    read_six_bits,
    write_bytes,
    write_four_bits,
    write_six_bit_pairs,
    write_six_bits,
)

SUPERBLOCK = 256

KTypeName = Literal["Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K"]


@dataclass(frozen=True)
class KType:
    """Codes run from `low` to `high`, scales from `scale_low` to `scale_high`, and minima from 0 to `scale_high`.

    `fields` has the number of bytes of every part of a superblock, in the order of the parts: those of the codes, which
    are in `planes`, `scales` (with minima), `d` and `dmin`.
    """

    bits: int
    low: int
    sub_block: int
    scale_low: int
    scale_high: int
    fields: Mapping[str, int]
    planes: Mapping[str, BitPlane]
    read_scales: Callable[[Tensor], Numbers]
    write_scales: Callable[[Numbers], Tensor]

    @property
    def high(self) -> int:
        return self.low + 2**self.bits - 1

    @property
    def num_sub_blocks(self) -> int:
        return SUPERBLOCK // self.sub_block

    @property
    def has_minima(self) -> bool:
        return "dmin" in self.fields

    @property
    def num_weights(self) -> int:
        return SUPERBLOCK

    @property
    def num_bytes(self) -> int:
        """Bytes of a superblock."""
        return sum(self.fields.values())


K_TYPES: Mapping[str, KType] = {
    "Q6_K": KType(
        bits=6,
        low=-32,
        sub_block=16,
        scale_low=-128,
        scale_high=127,
        fields={"low": 128, "high": 64, "scales": 16, "d": 2},
        planes={"low": BitPlane(bits=4, place=0, run=64), "high": BitPlane(bits=2, place=4, run=32)},
        read_scales=read_bytes,
        write_scales=write_bytes,
    ),
    "Q5_K": KType(
        bits=5,
        low=0,
        sub_block=32,
        scale_low=0,
        scale_high=63,
        fields={"d": 2, "dmin": 2, "scales": 12, "high": 32, "low": 128},
        planes={"low": BitPlane(bits=4, place=0, run=32), "high": BitPlane(bits=1, place=4, run=32)},
        read_scales=read_six_bit_pairs,
        write_scales=write_six_bit_pairs,
    ),
    "Q4_K": KType(
        bits=4,
        low=0,
        sub_block=32,
        scale_low=0,
        scale_high=63,
        fields={"d": 2, "dmin": 2, "scales": 12, "low": 128},
        planes={"low": BitPlane(bits=4, place=0, run=32)},
        read_scales=read_six_bit_pairs,
        write_scales=write_six_bit_pairs,
    ),
    "Q3_K": KType(
        bits=3,
        low=-4,
        sub_block=16,
        scale_low=-32,
        scale_high=31,
        fields={"high": 32, "low": 64, "scales": 12, "d": 2},
        planes={"low": BitPlane(bits=2, place=0, run=32), "high": BitPlane(bits=1, place=2, run=32)},
        read_scales=read_six_bits,
        write_scales=write_six_bits,
    ),
    "Q2_K": KType(
        bits=2,
        low=0,
        sub_block=16,
        scale_low=0,
        scale_high=15,
        fields={"scales": 16, "low": 64, "d": 2, "dmin": 2},
        planes={"low": BitPlane(bits=2, place=0, run=32)},
        read_scales=read_four_bits,
        write_scales=write_four_bits,
    ),
}
"""From the largest to the smallest."""
