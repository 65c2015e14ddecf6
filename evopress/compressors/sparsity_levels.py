"""What all pruning methods have in common: levels that remove weights in equal steps."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from math import ceil
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, field_validator
from torch import Tensor

from evopress.compressors.base import CompressedGroup, Compressor, LayerGroup
from evopress.compressors.output_errors import dense_levels, relative_errors
from evopress.runtime.config_class import config_class
from evopress.space.budget import Metric
from evopress.space.shapes import LayerShape
from evopress.space.units import Level
from evopress.weights.base import CompressedWeight
from evopress.weights.sparse import SparseWeight, sparse_bytes

MaskMaker = Callable[[Tensor, Sequence[int]], Iterator[Tensor]]
"""Takes a weight (rows, cols) and the number of zeros of each level. Yields the mask of kept weights of each level."""


@config_class
class SparsityLevels(Compressor):
    """Levels that remove weights in steps of the same size in every layer.

    Level `num_levels` removes the share `base` of a layer's weights. Each further level removes `step` more weights,
    whatever the size of the layer. So one level up in one layer and one level down in another leave the total number of
    weights unchanged. The levels end where no weight or every weight is removed. Repeated levels at the dense end are
    kept, so that a level number means the same distance from `base` in every layer. Repeated levels at the sparse end
    are left out.

    `step` is None until `for_hidden_size` sets it. `value_dtype` is the type in which the remaining weights are stored.
    """

    metric: ClassVar[Metric] = "sparsity"
    levels_key: ClassVar[str] = "compress.num_levels"

    base: float = 0.5
    num_levels: int = Field(default=8, gt=0, le=30)
    step: int | None = Field(default=None, gt=0)
    value_dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"

    @field_validator("base")
    @classmethod
    def _is_share(cls, base: float) -> float:
        if not 0 <= base <= 1:
            raise ValueError(
                "it must be a share from 0 to 1; its default is budget.target, so use budget=sparsity50 or another "
                "sparsity"
            )
        return base

    def for_hidden_size(self, hidden_size: int) -> Self:
        """A copy with the default step, 0.5·min(base, 1 − base)/num_levels·hidden_size², if no step is set.

        Source: arXiv 2410.14649, Appendix A: 1 000 000 weights for models of 7 to 8 billion.
        """
        step = int(0.5 * min(self.base, 1 - self.base) / self.num_levels * hidden_size**2)
        return self if self.step else replace(self, step=max(1, step))

    @property
    def span(self) -> tuple[float, float]:
        """The largest possible span. How far the levels go depends on the sizes of the layers."""
        return 0.0, 1.0

    @property
    def propagate_level(self) -> int:
        return self.num_levels

    @property
    def storage_dtype(self) -> torch.dtype:
        return getattr(torch, self.value_dtype)

    def levels(self, layer: LayerShape) -> list[Level]:
        return [self._level(layer, zeros) for zeros in self.num_zeros(layer)]

    def _level(self, layer: LayerShape, zeros: int) -> Level:
        num_kept = layer.num_weights - zeros
        return Level(
            label=f"{zeros / layer.num_weights:.3f}",
            value=round(zeros / layer.num_weights, 6),
            cost=num_kept,
            size_bytes=sparse_bytes(layer.rows, layer.cols, num_kept=num_kept, value_bytes=self.storage_dtype.itemsize),
        )

    def num_zeros(self, layer: LayerShape) -> list[int]:
        """Weights removed at each level."""
        if self.step is None:
            raise ValueError("compress.step is not set: set it, or call for_hidden_size(hidden_size) for the default")
        # The budget uses the same expression, so the base level meets the budget to the last weight.
        base = ceil(Fraction(repr(self.base)) * layer.num_weights)
        zeros = [
            min(max(base + distance * self.step, 0), layer.num_weights)
            for distance in range(-self.num_levels, self.num_levels + 1)
        ]
        while len(zeros) > self.num_levels + 1 and zeros[-1] == zeros[-2]:
            zeros.pop()
        return zeros


def prune(settings: SparsityLevels, group: LayerGroup, *, masks_of: MaskMaker) -> CompressedGroup:
    """Prune all layers of a group to all levels, without changing the remaining weights."""
    levels: list[list[CompressedWeight]] = []
    for layer, weight in zip(group.shapes, group.weights, strict=True):
        num_zeros = settings.num_zeros(layer)
        stored = weight.to(settings.storage_dtype)
        levels.append(
            [
                SparseWeight.from_dense(stored, mask, num_kept=layer.num_weights - zeros)
                for mask, zeros in zip(masks_of(weight, num_zeros), num_zeros, strict=True)
            ]
        )
    return CompressedGroup(levels, relative_errors(dense_levels(levels), group.weights, H=group.hessian))
