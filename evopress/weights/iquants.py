"""Weights in the I types of ggml, in exactly the bytes that a GGUF file holds."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from evopress.weights.base import FloatPart
from evopress.weights.ggml_rows import GgmlRows
from evopress.weights.half_bytes import bytes_to_halves, half, halves_to_bytes
from evopress.weights.i_types import I_TYPES, IType


@dataclass(frozen=True)
class IWeight(GgmlRows):
    """Rows of an I type."""

    @property
    def kind(self) -> IType:
        return I_TYPES[self.type_name]

    def _blocks(self) -> Tensor:
        return self.data.unflatten(1, (-1, self.kind.num_bytes))

    def factors(self) -> Tensor:
        """d of every block, float32 (rows, blocks)."""
        return bytes_to_halves(self._blocks()[..., :2])

    def _steps(self) -> Tensor:
        """The weights in units of d, float32 (rows, blocks, weights)."""
        return self.kind.steps(self._blocks()[..., 2:])

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return self._steps().mul_(self.factors().unsqueeze(-1)).flatten(1).to(dtype)

    def float_parts(self) -> dict[str, FloatPart]:
        d = self.factors()
        return {"d": FloatPart(d, d)}

    def dense_with(self, values: Mapping[str, Tensor]) -> Tensor:
        d = values["d"]
        return (self._steps().to(d.dtype) * d.unsqueeze(-1)).flatten(1)

    def with_float_parts(self, values: Mapping[str, Tensor]) -> "IWeight":
        parts = [halves_to_bytes(half(values["d"].float())), self._blocks()[..., 2:]]
        return replace(self, data=torch.cat(parts, -1).flatten(1).contiguous())
