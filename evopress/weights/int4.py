"""INT4: integers from −8 to 7 with a scale per 64 columns of a row, stored as a `QuantizedWeight`.

The scale of a group is the one of a few candidates with the least squared error, weighted by the power of the inputs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from evopress.weights.grids import storable_scale
from evopress.weights.integer import QuantizedWeight, quantized_bytes
from evopress.weights.number_formats import (
    NumberFormat,
    Scales,
    ScaleSettings,
    largest_of_groups,
    register_number_format,
)

GROUP = 64
"""A size for which vLLM has kernels, on a CPU as well."""

LARGEST_CODES = tuple(7 + 0.25 * step for step in range(13))
"""What the largest weight of a group becomes before it is rounded and clamped: 7 to 10."""


class _INT4(NumberFormat):
    kind = QuantizedWeight
    bits = 4 + 16 / GROUP
    group_size = GROUP
    code_bits = 4

    def fits(self, cols: int) -> bool:
        return cols % GROUP == 0

    def size_bytes(self, rows: int, cols: int, *, scale_bytes: int) -> int:
        return quantized_bytes(rows, cols, bits=4, group_size=GROUP, symmetric=True, scale_bytes=scale_bytes)

    def scales(self, weights: Sequence[Tensor], settings: ScaleSettings) -> list[Scales]:
        return [self._scales_of(weight, settings) for weight in weights]

    def _scales_of(self, weight: Tensor, settings: ScaleSettings) -> Scales:
        groups, largest = weight.unflatten(1, (-1, GROUP)), largest_of_groups(weight, GROUP)
        power = settings.power.to(weight).unflatten(0, (-1, GROUP))
        best = torch.full_like(largest, torch.inf)
        values = torch.ones_like(largest)
        for code in LARGEST_CODES:
            candidate = storable_scale(largest / code, settings.dtype)
            rounded = self.round(groups / candidate.unsqueeze(2)).mul_(candidate.unsqueeze(2))
            errors = rounded.sub_(groups).square_().mul_(power).sum(2)
            values = torch.where(errors < best, candidate, values)
            best = torch.minimum(errors, best)
        stored = values.to(settings.dtype)
        return Scales(stored.float(), {"scales": stored})

    def round(self, x: Tensor) -> Tensor:
        return x.round().clamp_(-8, 7)

    def pack(self, elements: Tensor, scales: Scales) -> QuantizedWeight:
        return QuantizedWeight.from_codes(
            (elements + 8).to(torch.uint8), scales.stored["scales"], zeros=None, bits=self.code_bits
        )


INT4 = register_number_format("int4", _INT4())
