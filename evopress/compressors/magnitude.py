"""Magnitude pruning: the smallest weights of a layer are removed."""

from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from evopress.compressors.base import CompressedGroup, LayerGroup
from evopress.compressors.sparsity_levels import SparsityLevels, prune
from evopress.runtime.config_class import config_class


@config_class
class Magnitude(SparsityLevels):
    """Removes the smallest weights of a layer, without calibration. The baseline for SparseGPT."""

    needs_hessian: ClassVar[bool] = False

    def compress(self, group: LayerGroup) -> CompressedGroup:
        return prune_by_magnitude(self, group)


def prune_by_magnitude(settings: SparsityLevels, group: LayerGroup) -> CompressedGroup:
    """All layers at all levels. The errors are weighed by the Hessian where the group has one."""
    return prune(settings, group, masks_of=_largest)


def _largest(weight: Tensor, num_zeros: Sequence[int]) -> Iterator[Tensor]:
    """One sort serves all levels."""
    rank = ranks(weight.abs().flatten()).view_as(weight)
    return (rank >= zeros for zeros in num_zeros)


def ranks(scores: Tensor) -> Tensor:
    """Place of each of `scores` in their ascending order along the last dimension, int64.

    The scores are non-negative float32; equal ones stay in order. Such floats sort like their bits, and integers sort
    several times faster.
    """
    order = scores.contiguous().view(torch.int32).argsort(dim=-1, stable=True)
    places = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places)
