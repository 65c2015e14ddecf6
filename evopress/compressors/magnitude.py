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
    """Removes the smallest weights of a layer, without calibration. It is the baseline for SparseGPT."""

    needs_hessian: ClassVar[bool] = False

    def compress(self, group: LayerGroup) -> CompressedGroup:
        return prune_by_magnitude(self, group)


def prune_by_magnitude(settings: SparsityLevels, group: LayerGroup) -> CompressedGroup:
    """Prune all layers to all levels. The errors are weighted by the Hessian if the group has one."""
    return prune(settings, group, masks_of=_largest)


def _largest(weight: Tensor, num_zeros: Sequence[int]) -> Iterator[Tensor]:
    """Yield the mask of each level. One sort serves all levels."""
    rank = ranks(weight.abs().flatten()).view_as(weight)
    return (rank >= zeros for zeros in num_zeros)


def ranks(scores: Tensor) -> Tensor:
    """The rank of each score in ascending order along the last dimension, int64.

    The scores are non-negative float32. Equal scores keep their order. Non-negative floats sort like their bits, and
    integers sort several times faster.
    """
    order = scores.contiguous().view(torch.int32).argsort(dim=-1, stable=True)
    places = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places)
