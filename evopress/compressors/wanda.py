"""Wanda: magnitude pruning where a weight counts as much as its input is strong, row by row."""

from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from evopress.compressors.base import LayerGroup, CompressedGroup
from evopress.compressors.magnitude import Magnitude, ranks
from evopress.runtime.config_class import config_class
from evopress.space.budget import Metric


@config_class
class Wanda(Magnitude):
    """Removes in each row the weights with the smallest |w|·‖x_j‖, as many as in every other row, or one more.

    Source: arXiv 2306.11695, Equation 1 and Section 3.
    """

    metric: ClassVar[Metric] = "sparsity"
    needs_hessian: ClassVar[bool] = True

    def compress(self, group: LayerGroup) -> CompressedGroup:
        assert group.hessian is not None, "the group has no Hessian"
        if bool(group.hessian.any()):
            return super().compress(group)
        solved = super().compress(LayerGroup(group.names, group.weights))
        note = "no calibration input was ever other than zero, pruned by magnitude within each row instead"
        return CompressedGroup(solved.levels, solved.errors, (f"{', '.join(group.names)}: {note}",))

    def _masks(self, weight: Tensor, H: Tensor | None, num_zeros: Sequence[int]) -> Iterator[Tensor]:
        scores = weight.abs() if H is None else weight.abs() * H.diagonal().sqrt()  # ‖x_j‖ up to a common factor
        rank = ranks(scores)
        ends = torch.arange(len(weight) + 1, device=weight.device)
        shares = (ends * zeros // len(weight) for zeros in num_zeros)  # of the first rows; exact in total
        return (rank >= share.diff().unsqueeze(1) for share in shares)
