"""Wanda: magnitude pruning within each row, with every weight scaled by the norm of its input."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from evopress.compressors.base import CompressedGroup, LayerGroup
from evopress.compressors.magnitude import ranks
from evopress.compressors.sparsity_levels import SparsityLevels, prune
from evopress.runtime.config_class import config_class


@config_class
class Wanda(SparsityLevels):
    """Removes the weights with the smallest |w|·‖x_j‖ in each row. The counts of two rows differ by one at most.

    Source: arXiv 2306.11695, Equation 1 and Section 3.
    """

    needs_hessian: ClassVar[bool] = True

    def compress(self, group: LayerGroup) -> CompressedGroup:
        assert group.hessian is not None, "the group has no Hessian"
        if bool(group.hessian.any()):
            norms = group.hessian.diagonal().sqrt()  # ‖x_j‖ up to a common factor
            return prune(self, group, masks_of=partial(_largest_in_rows, norms))
        pruned = prune(self, replace(group, hessian=None), masks_of=partial(_largest_in_rows, 1.0))
        note = group.note("all calibration inputs were zero, pruned by magnitude within each row instead")
        return replace(pruned, notes=(note,))


def _largest_in_rows(input_norms: Tensor | float, weight: Tensor, num_zeros: Sequence[int]) -> Iterator[Tensor]:
    rank = ranks(weight.abs() * input_norms)
    row_ends = torch.arange(len(weight) + 1, device=weight.device)
    zeros_above = (row_ends * zeros // len(weight) for zeros in num_zeros)  # in all rows above; the total is exact
    return (rank >= zeros.diff().unsqueeze(1) for zeros in zeros_above)
