"""Magnitude pruning, and the levels that all sparsity methods share: equal steps of weights removed."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from math import ceil
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, field_validator
from torch import Tensor

from evopress.compressors.base import Compressor, LayerGroup, CompressedGroup
from evopress.compressors.linalg import relative_errors
from evopress.runtime.config_class import config_class
from evopress.space.budget import Metric
from evopress.space.shapes import LayerShape
from evopress.space.units import Level
from evopress.weights.base import CompressedWeight
from evopress.weights.sparse import SparseWeight, sparse_bytes


@config_class
class Magnitude(Compressor):
    """Removes the smallest weights of a layer.

    Level `num_levels` of a layer has the share `base` of its weights removed, the levels before and after it `step`
    weights less and more each, whatever the size of the layer. One level up here and one down there therefore keeps the
    number of weights, between any two layers. Levels end at 0 and at all weights; there, several are the same, so that
    equal numbers mean equal distance from `base` in every layer. (Equal levels at the sparse end are left out.)

    `step` is None until `for_hidden_size` has set it. `value_dtype` is the type of the surviving weights in storage.
    """

    metric: ClassVar[Metric] = "sparsity"
    needs_hessian: ClassVar[bool] = False

    base: float = 0.5
    num_levels: int = Field(default=8, gt=0, le=30)
    step: int | None = Field(default=None, gt=0)
    value_dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"

    @field_validator("base")
    @classmethod
    def _is_share(cls, base: float) -> float:
        if not 0 <= base <= 1:
            raise ValueError(
                "it must be a share from 0 to 1; it follows budget.target: use budget=sparsity50 or the like"
            )
        return base

    def for_hidden_size(self, hidden_size: int) -> Self:
        """With the default step, 0.5·min(base, 1 − base)/num_levels·hidden_size², where none was set.

        Source: arXiv 2410.14649, Appendix A: 1 000 000 weights for models of 7 to 8 billion.
        """
        step = int(0.5 * min(self.base, 1 - self.base) / self.num_levels * hidden_size**2)
        return self if self.step else replace(self, step=max(1, step))

    @property
    def span(self) -> tuple[float, float]:
        """Bounds; how far the levels go depends on the sizes of the layers."""
        return 0.0, 1.0

    @property
    def propagate_level(self) -> int:
        return self.num_levels

    def levels(self, layer: LayerShape) -> list[Level]:
        return [
            Level(
                label=f"{zeros / layer.num_weights:.3f}",
                value=round(zeros / layer.num_weights, 6),
                cost=layer.num_weights - zeros,
                size_bytes=sparse_bytes(
                    layer.rows,
                    layer.cols,
                    num_kept=layer.num_weights - zeros,
                    value_bytes=self._value_dtype.itemsize,
                ),
            )
            for zeros in self.num_zeros(layer)
        ]

    def num_zeros(self, layer: LayerShape) -> list[int]:
        """Weights removed at each level."""
        if self.step is None:
            raise ValueError("compress.step is not set: set it, or call for_hidden_size(hidden_size) for the default")
        # The same expression as the budget's, so that the base level meets it to the weight.
        base = ceil(Fraction(repr(self.base)) * layer.num_weights)
        zeros = [
            min(max(base + distance * self.step, 0), layer.num_weights)
            for distance in range(-self.num_levels, self.num_levels + 1)
        ]
        while len(zeros) > self.num_levels + 1 and zeros[-1] == zeros[-2]:
            zeros.pop()
        return zeros

    def compress(self, group: LayerGroup) -> CompressedGroup:
        levels: list[list[CompressedWeight]] = []
        for layer, weight in zip(group.shapes, group.weights, strict=True):
            counts = self.num_zeros(layer)
            masks = zip(self._masks(weight, group.hessian, counts), counts, strict=True)
            stored = weight.to(self._value_dtype)
            levels.append(
                [SparseWeight.from_dense(stored, mask, num_kept=layer.num_weights - zeros) for mask, zeros in masks]
            )
        dense = [[level.dense for level in of_layer] for of_layer in levels]
        return CompressedGroup(levels, relative_errors(list(zip(dense, group.weights, strict=True)), group.hessian))

    def _masks(self, weight: Tensor, H: Tensor | None, num_zeros: Sequence[int]) -> Iterator[Tensor]:
        """What to keep of a weight, bool (rows, cols), at each level; all levels come from one sort."""
        rank = ranks(weight.abs().flatten()).view_as(weight)
        return (rank >= zeros for zeros in num_zeros)

    @property
    def _value_dtype(self) -> torch.dtype:
        return getattr(torch, self.value_dtype)


def ascending(scores: Tensor) -> Tensor:
    """Indices that sort non-negative float32 `scores` along the last dimension; equal ones stay in order.

    Such floats sort like their bits, and integers sort several times faster.
    """
    return scores.contiguous().view(torch.int32).argsort(dim=-1, stable=True)


def ranks(scores: Tensor) -> Tensor:
    """Place of each of `scores` in their ascending order along the last dimension, int64."""
    order = ascending(scores)
    return torch.empty_like(order).scatter_(
        -1, order, torch.arange(order.shape[-1], device=order.device).expand_as(order)
    )
