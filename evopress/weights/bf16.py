"""bfloat16: weights without scales, stored as `Kept`."""

from collections.abc import Sequence

from torch import Tensor

from evopress.weights.dense import Kept
from evopress.weights.number_formats import NumberFormat, Scales, ScaleSettings, register_number_format


class _BF16(NumberFormat):
    kind = Kept
    bits = 16
    is_lossy = False

    def size_bytes(self, rows: int, cols: int, *, scale_bytes: int) -> int:
        return 2 * rows * cols

    def scales(self, weights: Sequence[Tensor], settings: ScaleSettings) -> list[Scales]:
        return [Scales(weight.new_ones(len(weight), 1)) for weight in weights]

    def round(self, x: Tensor) -> Tensor:
        return x.bfloat16().float()

    def pack(self, elements: Tensor, scales: Scales) -> Kept:
        return Kept(elements.bfloat16())


BF16 = register_number_format("bf16", _BF16())
