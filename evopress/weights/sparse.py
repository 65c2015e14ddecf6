"""Weights of which some are removed: a bit mask, and the values of the others."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from evopress.weights.base import CompressedWeight, FloatPart, Spec, register_reader
from evopress.weights.checks import FLOATS, MAX_WEIGHTS, checked_integer, checked_matrix, require

_GATHER_BITS = 0x0102040810204080
"""Multiplying a word of eight bytes, each 0 or 1, by this number collects them as the bits of its highest byte.

The first byte becomes the lowest bit.
"""


@dataclass(frozen=True)
class SparseWeight(CompressedWeight):
    """A bit per weight that says whether it is kept, and the kept weights row by row.

    `bitmask` is uint8 (rows, ⌈cols/8⌉), the first column in the lowest bit. `values` (kept,) are 16- or 32-bit floats.
    A kept weight may happen to be zero; it still counts as kept.
    """

    is_quantized: ClassVar[bool] = False
    removes_weights: ClassVar[bool] = True
    VALUES: ClassVar[str] = "values"
    """The name of the kept weights, among the tensors and among the parts that can be tuned."""

    bitmask: Tensor
    values: Tensor
    cols: int

    @classmethod
    def from_dense(cls, weight: Tensor, kept: Tensor, *, num_kept: int | None = None) -> "SparseWeight":
        """Keep `weight` (rows, cols) where the bool tensor `kept` (rows, cols) is set, in the type of `weight`.

        `num_kept` is the number of weights that are kept. Passing it avoids waiting for a GPU to count them.
        """
        places = kept.flatten().cumsum(0)  # kept weights are numbered from 1; place 0 takes all others
        values = weight.new_empty(1 + (int(places[-1]) if num_kept is None else num_kept))
        values.scatter_(0, places.mul_(kept.flatten()), weight.flatten())
        return cls(_pack_mask(kept), values[1:].clone(), weight.shape[1])

    @property
    def shape(self) -> tuple[int, int]:
        return self.bitmask.shape[0], self.cols

    @property
    def size_bytes(self) -> int:
        return self.bitmask.nbytes + self.values.nbytes

    def kept(self) -> Tensor:
        """bool (rows, cols)."""
        return self._bits().bool()

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Looks up every weight at its place among the values. This is several times faster than a scatter by mask.

        The mask is applied to the bits of the floats, because 0 times a value that is not finite is not 0.
        """
        bits = self._bits()
        places = bits.flatten().cumsum(0, dtype=torch.int32 if bits.numel() < 2**31 else torch.int64)
        integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
        values = pad(self.values.to(dtype), (1, 0)).view(integers)  # weights before the first kept one read place 0
        weight = values.index_select(0, places).view(bits.shape)
        return weight.mul_(bits.to(integers)).view(dtype)

    def float_parts(self) -> dict[str, FloatPart]:
        values = self.values.float()
        size = values.square().mean().sqrt()
        return {self.VALUES: FloatPart(values, torch.where(size > 0, size, 1.0).expand_as(values))}

    def dense_with(self, values: Mapping[str, Tensor]) -> Tensor:
        bits = self._bits()
        places = bits.flatten().cumsum(0)
        return pad(values[self.VALUES], (1, 0)).index_select(0, places).view(bits.shape) * bits

    def with_float_parts(self, values: Mapping[str, Tensor]) -> "SparseWeight":
        return replace(self, values=values[self.VALUES].to(self.values.dtype))

    def _bits(self) -> Tensor:
        """uint8 (rows, cols), 1 where a weight is kept. A table turns each byte of the mask into eight bytes."""
        byte, place = (torch.arange(count, dtype=torch.uint8, device=self.bitmask.device) for count in (256, 8))
        table = ((byte[:, None] >> place) & 1).view(torch.int64).flatten()
        eights = table.index_select(0, self.bitmask.flatten().int())
        return eights.view(torch.uint8).view(len(self.bitmask), -1)[:, : self.cols]

    def tensors(self) -> dict[str, Tensor]:
        return {"bitmask": self.bitmask, "values": self.values}

    def spec(self) -> Spec:
        return {"kind": "sparse", "cols": self.cols}


def sparse_bytes(rows: int, cols: int, *, num_kept: int, value_bytes: int = 2) -> int:
    """Bytes of a `SparseWeight`."""
    return rows * -(-cols // 8) + num_kept * value_bytes


def _pack_mask(mask: Tensor) -> Tensor:
    rows, cols = mask.shape
    eights = pad(mask.to(torch.uint8), (0, -cols % 8)).flatten().view(torch.int64)
    return ((eights * _GATHER_BITS) >> 56).to(torch.uint8).view(rows, -1)


def _num_bits(mask: Tensor) -> int:
    """How many bits of a uint8 tensor are set: how often each of the 256 bytes occurs, times its number of bits."""
    bits = torch.tensor([byte.bit_count() for byte in range(256)], device=mask.device)
    return int((mask.flatten().bincount(minlength=256) * bits).sum())


@register_reader("sparse")
def _read(spec: Mapping[str, object], tensors: Mapping[str, Tensor]) -> SparseWeight:
    cols = checked_integer(spec, "cols", low=1, high=MAX_WEIGHTS)
    bitmask, values = checked_matrix(tensors, "bitmask", dtypes=(torch.uint8,)), tensors.get("values")
    require(bitmask.shape[1] == -(-cols // 8), "bit mask does not fit the columns")
    if values is None or values.ndim != 1 or values.dtype not in FLOATS:
        raise ValueError("values are missing or not a list of floats")
    require(not cols % 8 or not (bitmask[:, -1] >> cols % 8).any(), "bits are set beyond the last column")
    require(_num_bits(bitmask) == values.numel(), "bit mask and values differ in number")
    return SparseWeight(bitmask, values, cols)
