"""The grids of superblocks of K types."""

from dataclasses import dataclass

import torch
from torch import Tensor

from evopress.weights.k_types import K_TYPES
from evopress.weights.kquants import KWeight


@dataclass(frozen=True)
class KGrid:
    """The values d·s_j·q − dmin·m_j of rows of the type `type_name`.

    `scales` s and `minima` m are whole numbers, (superblocks, sub-blocks, rows). The factors `d` and `dmin` are
    (superblocks, 1, rows), and fit float16. All are float32. Minima of types without them are 0.
    """

    type_name: str
    scales: Tensor
    minima: Tensor
    d: Tensor
    dmin: Tensor

    def steps(self) -> Tensor:
        """d·s, (superblocks, sub-blocks, rows)."""
        return self.d * self.scales

    def offsets(self) -> Tensor:
        """−dmin·m, (superblocks, sub-blocks, rows)."""
        return -(self.dmin * self.minima)

    def encode(self, weight: Tensor) -> Tensor:
        """The nearest codes of weights (cols, rows), as float32; a step of 0 gives code 0."""
        kind, steps = K_TYPES[self.type_name], self.steps().unsqueeze(2)
        inverse = torch.where(steps == 0, 0.0, steps.reciprocal())
        blocks = weight.unflatten(0, (-1, kind.num_sub_blocks, kind.sub_block)) - self.offsets().unsqueeze(2)
        return blocks.mul_(inverse).round_().clamp_(kind.low, kind.high).flatten(0, 2)

    def weight(self, codes: Tensor) -> KWeight:
        """The stored weight with these codes (cols, rows)."""
        scales, minima, d, dmin = (part.flatten(0, 1).t() for part in (self.scales, self.minima, self.d, self.dmin))
        return KWeight.from_codes(codes.t(), scales, minima=minima, d=d, dmin=dmin, type_name=self.type_name)
