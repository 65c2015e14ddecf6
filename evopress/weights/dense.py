"""Weights that are kept unchanged or dropped as a whole."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from evopress.weights.base import CompressedWeight, PackedLayer, Spec, register_reader
from evopress.weights.checks import FLOATS, MAX_WEIGHTS, checked_integer, checked_matrix, require


@dataclass(frozen=True)
class Kept(CompressedWeight):
    """The unchanged weight, (rows, cols)."""

    is_quantized: ClassVar[bool] = False
    has_packed_layer: ClassVar[bool] = True

    weight: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.weight.shape[0], self.weight.shape[1]

    @property
    def size_bytes(self) -> int:
        return self.weight.nbytes

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.weight.to(dtype, copy=True)

    def packed_layer(self) -> PackedLayer:
        return PackedLayer("dense", {}, {"weight": self.weight.cpu().contiguous()})

    def tensors(self) -> dict[str, Tensor]:
        return {"weight": self.weight}

    def spec(self) -> Spec:
        return {"kind": "kept"}


@dataclass(frozen=True)
class Dropped(CompressedWeight):
    """A weight of zeros, which takes no bytes."""

    is_quantized: ClassVar[bool] = False

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


@register_reader("kept")
def _read_kept(spec: Mapping[str, object], tensors: Mapping[str, Tensor]) -> Kept:
    return Kept(checked_matrix(tensors, "weight", dtypes=FLOATS))


@register_reader("dropped")
def _read_dropped(spec: Mapping[str, object], tensors: Mapping[str, Tensor]) -> Dropped:
    rows = checked_integer(spec, "rows", low=1, high=MAX_WEIGHTS)
    cols = checked_integer(spec, "cols", low=1, high=MAX_WEIGHTS)
    require(rows * cols <= MAX_WEIGHTS, f"{rows} × {cols} is larger than any layer")
    return Dropped(rows, cols)
