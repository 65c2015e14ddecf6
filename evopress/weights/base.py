"""Compressed weights in the packed form they are stored in. The search and the export decode the same numbers."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from evopress.weights.grids import num_words, pack, unpack

Spec = dict[str, str | int]
"""What the tensors alone do not say, as JSON."""

MAX_WEIGHTS = 2**36
"""More weights than this in one layer is taken for a damaged file."""

_GATHER_BITS = 0x0102040810204080
"""Times a word whose eight bytes are 0 or 1, this has them as the bits of its highest byte, the first one lowest."""

_FLOATS = (torch.float16, torch.bfloat16, torch.float32)


class CompressedWeight(ABC):
    """One layer at one level. Immutable; holds packed tensors only, never a dense copy."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the dense weight."""

    @property
    @abstractmethod
    def size_bytes(self) -> int:
        """Bytes of the tensors in a file."""

    @abstractmethod
    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight (rows, cols), a new tensor, decoded in float32 and then cast."""

    def to(self, device: torch.device) -> Self:
        """The same weight on a device, which may still be receiving it."""
        parts = {part.name: getattr(self, part.name) for part in fields(self)}  # type: ignore[arg-type]
        moved = {name: _sent(part, device) for name, part in parts.items() if isinstance(part, Tensor)}
        return replace(self, **moved)  # type: ignore[type-var]

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """What is written to a file; together `size_bytes` long."""

    @abstractmethod
    def spec(self) -> Spec:
        """What else `from_tensors` needs."""


@dataclass(frozen=True)
class QuantizedWeight(CompressedWeight):
    """Integer codes with a scale and a zero point per row and group of neighbouring columns: scale·(code − zero).

    `packed` is int32 (rows, words), see `grids.pack`. `scales` are (rows, groups). `zeros` are uint8 (rows, groups);
    None is the symmetric grid, whose zero points are all 2^(bits−1). In a file the zero points take `bits` bits each,
    packed along the rows, as engines expect.
    """

    packed: Tensor
    scales: Tensor
    zeros: Tensor | None
    bits: int
    cols: int

    @classmethod
    def from_codes(cls, codes: Tensor, scales: Tensor, zeros: Tensor | None, bits: int) -> "QuantizedWeight":
        """From uint8 codes (rows, cols)."""
        return cls(pack(codes, bits), scales, zeros, bits, codes.shape[1])

    @property
    def shape(self) -> tuple[int, int]:
        return self.packed.shape[0], self.cols

    @property
    def group_size(self) -> int:
        return self.cols // self.scales.shape[1]

    @property
    def symmetric(self) -> bool:
        return self.zeros is None

    @property
    def size_bytes(self) -> int:
        rows, cols = self.shape
        return quantized_bytes(
            rows,
            cols,
            bits=self.bits,
            group_size=self.group_size,
            symmetric=self.symmetric,
            scale_bytes=self.scales.element_size(),
        )

    def codes(self) -> Tensor:
        """uint8 (rows, cols)."""
        return unpack(self.packed, self.bits, self.cols)

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        groups = self.codes().unflatten(1, (-1, self.group_size)).float()  # (rows, groups, group_size)
        groups -= 2 ** (self.bits - 1) if self.zeros is None else self.zeros.unsqueeze(2)
        return groups.mul_(self.scales.unsqueeze(2)).flatten(1).to(dtype)

    def tensors(self) -> dict[str, Tensor]:
        tensors = {"codes": self.packed, "scales": self.scales}
        if self.zeros is not None:
            tensors["zeros"] = pack(self.zeros.t(), self.bits)  # (groups, words)
        return tensors

    def spec(self) -> Spec:
        return {"kind": "quantized", "bits": self.bits, "cols": self.cols}


@dataclass(frozen=True)
class SparseWeight(CompressedWeight):
    """A bit per weight that says whether it is kept, and the kept weights row by row.

    `bitmask` is uint8 (rows, ⌈cols/8⌉), the first column in the lowest bit. `values` (kept,) are 16- or 32-bit floats.
    A kept weight may happen to be zero; it still counts as kept.
    """

    bitmask: Tensor
    values: Tensor
    cols: int

    @classmethod
    def from_dense(cls, weight: Tensor, kept: Tensor, num_kept: int | None = None) -> "SparseWeight":
        """Keep `weight` (rows, cols) where the bool tensor `kept` (rows, cols) is set, in the type of `weight`.

        Who knows how many are set says so in `num_kept`, and spares a GPU a wait.
        """
        places = kept.flatten().cumsum(0)  # of what is kept, from 1 on; all else is written to place 0
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
        """Every weight is looked up at its place among the values; several times faster than a scatter by mask.

        What is not kept is masked as an integer, so that it is zero beside values that are not finite.
        """
        bits = self._bits()
        places = bits.flatten().cumsum(0, dtype=torch.int32 if bits.numel() < 2**31 else torch.int64)
        integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
        values = pad(self.values.to(dtype), (1, 0)).view(integers)  # place 0 is before the first one
        weight = values.index_select(0, places).view(bits.shape)
        return weight.mul_(bits.to(integers)).view(dtype)

    def _bits(self) -> Tensor:
        """uint8 (rows, cols), 1 where a weight is kept. Eight at once from a table, as one integer."""
        byte, place = (torch.arange(count, dtype=torch.uint8, device=self.bitmask.device) for count in (256, 8))
        table = ((byte[:, None] >> place) & 1).view(torch.int64).flatten()
        found = table.index_select(0, self.bitmask.flatten().int()).view(torch.uint8)
        return found.view(len(self.bitmask), -1)[:, : self.cols]

    def tensors(self) -> dict[str, Tensor]:
        return {"bitmask": self.bitmask, "values": self.values}

    def spec(self) -> Spec:
        return {"kind": "sparse", "cols": self.cols}


@dataclass(frozen=True)
class Kept(CompressedWeight):
    """The weight as it was, (rows, cols)."""

    weight: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.weight.shape[0], self.weight.shape[1]

    @property
    def size_bytes(self) -> int:
        return self.weight.nbytes

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.weight.to(dtype, copy=True)

    def tensors(self) -> dict[str, Tensor]:
        return {"weight": self.weight}

    def spec(self) -> Spec:
        return {"kind": "kept"}


@dataclass(frozen=True)
class Dropped(CompressedWeight):
    """Nothing: all zeros, no bytes."""

    rows: int
    cols: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows, self.cols

    @property
    def size_bytes(self) -> int:
        return 0

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(self.shape, dtype=dtype)

    def tensors(self) -> dict[str, Tensor]:
        return {}

    def spec(self) -> Spec:
        return {"kind": "dropped", "rows": self.rows, "cols": self.cols}


def quantized_bytes(rows: int, cols: int, *, bits: int, group_size: int, symmetric: bool, scale_bytes: int = 2) -> int:
    """Bytes of a `QuantizedWeight`: codes padded to words per row, scales, zero points padded to words per group."""
    groups = cols // group_size
    zeros = 0 if symmetric else groups * num_words(rows, bits)
    return 4 * (rows * num_words(cols, bits) + zeros) + rows * groups * scale_bytes


def sparse_bytes(rows: int, cols: int, *, num_kept: int, value_bytes: int = 2) -> int:
    """Bytes of a `SparseWeight`."""
    return rows * -(-cols // 8) + num_kept * value_bytes


def from_tensors(spec: Mapping[str, object], tensors: Mapping[str, Tensor]) -> CompressedWeight:
    """Undo `spec` and `tensors`. Raises ValueError for anything that no compressed weight writes."""
    readers = {
        "quantized": _read_quantized,
        "sparse": _read_sparse,
        "kept": _read_kept,
        "dropped": _read_dropped,
        "ggml": _read_ggml,
    }
    kind = spec.get("kind")
    if not isinstance(kind, str) or kind not in readers:
        raise ValueError(f"unknown kind of weight {kind!r}: expected one of {', '.join(readers)}")
    return readers[kind](spec, tensors)


def _read_quantized(spec: Mapping[str, object], tensors: Mapping[str, Tensor]) -> QuantizedWeight:
    bits, cols = _integer(spec, "bits", 2, 8), _integer(spec, "cols", 1, MAX_WEIGHTS)
    packed, scales = _matrix(tensors, "codes", (torch.int32,)), _matrix(tensors, "scales", _FLOATS)
    rows, groups = scales.shape
    _require(packed.shape == (rows, num_words(cols, bits)), "codes do not fit scales and columns")
    _require(groups > 0 and cols % groups == 0, f"{groups} groups do not divide {cols} columns")
    _require(bool(scales.isfinite().all()), "scales are not finite")
    zeros = None
    if "zeros" in tensors:
        packed_zeros = _matrix(tensors, "zeros", (torch.int32,))
        _require(packed_zeros.shape == (groups, num_words(rows, bits)), "zero points do not fit scales")
        zeros = unpack(packed_zeros, bits, rows).t().contiguous()
    return QuantizedWeight(packed, scales, zeros, bits, cols)


def _read_sparse(spec: Mapping[str, object], tensors: Mapping[str, Tensor]) -> SparseWeight:
    cols = _integer(spec, "cols", 1, MAX_WEIGHTS)
    bitmask, values = _matrix(tensors, "bitmask", (torch.uint8,)), tensors.get("values")
    _require(bitmask.shape[1] == -(-cols // 8), "bit mask does not fit the columns")
    if values is None or values.ndim != 1 or values.dtype not in _FLOATS:
        raise ValueError("values are missing or not a list of floats")
    kept = SparseWeight(bitmask, values, 8 * bitmask.shape[1]).kept()
    _require(not kept[:, cols:].any(), "bits are set beyond the last column")
    _require(int(kept.sum()) == values.numel(), "bit mask and values differ in number")
    return SparseWeight(bitmask, values, cols)


def _read_kept(spec: Mapping[str, object], tensors: Mapping[str, Tensor]) -> Kept:
    return Kept(_matrix(tensors, "weight", _FLOATS))


def _read_dropped(spec: Mapping[str, object], tensors: Mapping[str, Tensor]) -> Dropped:
    rows, cols = _integer(spec, "rows", 1, MAX_WEIGHTS), _integer(spec, "cols", 1, MAX_WEIGHTS)
    _require(rows * cols <= MAX_WEIGHTS, f"{rows} × {cols} is larger than any layer")
    return Dropped(rows, cols)


def _read_ggml(spec: Mapping[str, object], tensors: Mapping[str, Tensor]) -> CompressedWeight:
    from evopress.weights.ggml import read_ggml  # builds on this module

    return read_ggml(spec, tensors)


def _integer(spec: Mapping[str, object], key: str, low: int, high: int) -> int:
    value = spec.get(key)
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{key} must be an integer from {low} to {high}, not {value!r}")
    return value


def _matrix(tensors: Mapping[str, Tensor], key: str, dtypes: tuple[torch.dtype, ...]) -> Tensor:
    tensor = tensors.get(key)
    if tensor is None or tensor.ndim != 2 or tensor.dtype not in dtypes or not tensor.numel():
        raise ValueError(f"{key} is missing or not a matrix of {' or '.join(str(dtype) for dtype in dtypes)}")
    return tensor


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    """On its way to the device. A GPU fetches it from pinned memory, the only kind that it need not wait for."""
    is_pinnable = device.type == "cuda" and tensor.device.type == "cpu" and torch.cuda.is_available()
    return (tensor.pin_memory() if is_pinnable else tensor).to(device, non_blocking=True)


def _pack_mask(mask: Tensor) -> Tensor:
    rows, cols = mask.shape
    eights = pad(mask.to(torch.uint8), (0, -cols % 8)).contiguous().view(torch.int64)
    return ((eights * _GATHER_BITS) >> 56).to(torch.uint8).view(rows, -1)
