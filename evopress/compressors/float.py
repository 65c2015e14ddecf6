"""Levels in number formats that hardware multiplies: NVFP4, MXFP4, FP8, INT8 and bfloat16."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from evopress.compressors.base import CompressedGroup, Compressor, LayerGroup
from evopress.compressors.format_sweep import FormatSweep
from evopress.compressors.inverse_factor import column_order, factor_inverse
from evopress.compressors.output_errors import dense_levels, relative_errors
from evopress.runtime.config_class import config_class
from evopress.space.budget import Metric
from evopress.space.shapes import LayerShape
from evopress.space.units import Level
from evopress.weights.base import CompressedWeight
from evopress.weights.number_formats import NumberFormat, Scales, ScaleSettings, number_formats, per_column


@config_class
class Float(Compressor):
    """Rounds to number formats. A cost counts scales as well, in bits.

    `formats` are the names of the formats, in the configuration `compress.levels`. Level 0 is the largest format. A
    layer whose inputs do not fill whole groups does not have the level. `scale_dtype` is the type of the scales of FP8
    and INT8. The scales of NVFP4 and MXFP4 have a type of their own.

    With the `rounding` gptq, the errors of a column are compensated in later columns, in which case `damp` is the
    damping as a share of the Hessian's mean diagonal. With `act_order`, the columns with the strongest inputs are
    rounded first. Scales are those of the original weights. bfloat16 is always rounded to nearest. `four_over_six`
    lets NVFP4 map the largest weight of a group to 6 or to 4, whichever has the least squared error, weighted by the
    Hessian's diagonal.

    The next block is calibrated on the outputs of `propagate_format`. A layer without this level uses the next larger
    one, or its largest if there is none. With `weigh_tokens`, tokens count in the Hessian by their effect on the
    model's predictions.
    """

    metric: ClassVar[Metric] = "bits"
    levels_key: ClassVar[str] = "compress.levels"
    needs_hessian: ClassVar[bool] = True

    formats: tuple[str, ...] = Field(default=("bf16", "fp8", "int8", "nvfp4"), alias="levels")
    rounding: Literal["gptq", "nearest"] = "gptq"
    four_over_six: bool = True
    scale_dtype: Literal["float16", "bfloat16", "float32"] = "bfloat16"
    act_order: bool = True
    weigh_tokens: bool = True
    damp: float = Field(default=0.01, gt=0)
    propagate_format: str = "nvfp4"

    @field_validator("formats")
    @classmethod
    def _distinct_largest_first(cls, formats: tuple[str, ...]) -> tuple[str, ...]:
        known = number_formats()
        unknown = set(formats) - known.keys()
        if unknown or not formats or len(set(formats)) < len(formats):
            raise ValueError(f"{list(formats)} must be different formats out of {', '.join(sorted(known))}")
        return tuple(sorted(formats, key=lambda name: (-_size_of_reference(known[name]), name)))

    @field_validator("propagate_format")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in number_formats():
            raise ValueError(f"it must be one of {', '.join(sorted(number_formats()))}")
        return name

    @property
    def needs_token_weights(self) -> bool:
        return self.weigh_tokens

    @property
    def weight_kinds(self) -> frozenset[type[CompressedWeight]]:
        return frozenset(number_formats()[name].kind for name in self.formats)

    @property
    def scale_type(self) -> torch.dtype:
        return self._torch_scale_dtype

    @property
    def code_bits(self) -> tuple[int, ...]:
        widths = (number_formats()[name].code_bits for name in self.formats)
        return tuple(bits for bits in widths if bits is not None)

    @property
    def span(self) -> tuple[float, float]:
        bits = [number_formats()[name].bits for name in self.formats]
        return min(bits), max(bits)

    @property
    def propagate_level(self) -> int:
        return self._level_to_propagate(self.formats)

    def propagate_level_of(self, layer: LayerShape) -> int:
        return self._level_to_propagate(self._formats_of(layer.cols))

    def _level_to_propagate(self, names: Sequence[str]) -> int:
        known = number_formats()
        if self.propagate_format in names:
            return names.index(self.propagate_format)
        wanted = known[self.propagate_format].bits
        return max((level for level, name in enumerate(names) if known[name].bits >= wanted), default=0)

    def _formats_of(self, cols: int) -> tuple[str, ...]:
        """The formats that a layer with `cols` inputs can have."""
        return tuple(name for name in self.formats if number_formats()[name].fits(cols))

    def levels(self, layer: LayerShape) -> list[Level]:
        names = self._formats_of(layer.cols)
        if not names:
            raise ValueError(
                f"{layer.name} has {layer.cols} inputs, which fit none of compress.levels={list(self.formats)}: add "
                "fp8 or bf16, which fit every layer"
            )
        scale_bytes = self._torch_scale_dtype.itemsize
        known = number_formats()
        sizes = {name: known[name].size_bytes(layer.rows, layer.cols, scale_bytes=scale_bytes) for name in names}
        return [
            Level(label=name, value=known[name].bits, cost=8 * size, size_bytes=size) for name, size in sizes.items()
        ]

    def compress(self, group: LayerGroup) -> CompressedGroup:
        assert group.hessian is not None, "the group has no Hessian"
        H, weights = group.hessian, group.weights
        format_sweep, notes = self._sweep(H) if self.rounding == "gptq" else (None, ())
        settings = ScaleSettings(self._torch_scale_dtype, H.diagonal(), self.four_over_six)
        by_format = []
        for name in self._formats_of(len(H)):
            number_format = number_formats()[name]
            scales = number_format.scales(weights, settings)
            if format_sweep and number_format.is_lossy:
                by_format.append(format_sweep.to_format(number_format, weights, scales))
            else:
                by_format.append(round_to_nearest(number_format, weights, scales))
        levels = [list(layer_levels) for layer_levels in zip(*by_format, strict=True)]
        errors = relative_errors(dense_levels(levels), weights, H=H)
        return CompressedGroup(levels, errors, tuple(group.note(note) for note in notes))

    def _sweep(self, H: Tensor) -> tuple[FormatSweep | None, tuple[str, ...]]:
        """What a sweep needs, or None if H cannot be factored, and notes on H."""
        order = column_order(H, by_power=self.act_order)
        factor = factor_inverse(H, damp=self.damp, order=order)
        if factor.U is None:
            return None, (*factor.notes, "rounded to nearest instead")
        return FormatSweep(factor.U, order, factor.dead), factor.notes

    @property
    def _torch_scale_dtype(self) -> torch.dtype:
        return getattr(torch, self.scale_dtype)


def round_to_nearest(
    number_format: NumberFormat, weights: Sequence[Tensor], scales: Sequence[Scales]
) -> list[CompressedWeight]:
    """The weights (rows_i, cols), with every number rounded to the nearest one of its grid."""
    packed = []
    for weight, part in zip(weights, scales, strict=True):
        by_column = per_column(part.values, number_format.group_size, cols=weight.shape[1])
        packed.append(number_format.pack(number_format.round(weight / by_column), part))
    return packed


def _size_of_reference(number_format: NumberFormat) -> int:
    """Bytes of a layer of usual size, to compare formats."""
    return number_format.size_bytes(4096, 4096, scale_bytes=2)
