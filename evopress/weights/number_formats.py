"""The contract of a number format: weights that are small numbers, its *elements*, times a scale per block.

A compressor needs no more than this to round to a format, to nearest or in a sweep. A new format takes one module: a
kind of weight, and a `NumberFormat` that packs it.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeVar

import torch
from torch import Tensor

from evopress.weights.base import CompressedWeight


@dataclass(frozen=True)
class ScaleSettings:
    """How scales are chosen. `dtype` is the type of scales whose type a format leaves open.

    `power` (cols,) is the mean square of each column's inputs, up to a common factor. It weighs squared errors.
    With `four_over_six`, NVFP4 maps the largest weight of each group to 6 or to 4, whichever has the least error.
    """

    dtype: torch.dtype
    power: Tensor
    four_over_six: bool = False


@dataclass(frozen=True)
class Scales:
    """The scales of a layer. `values` are float32 (rows, groups), as a weight is decoded: an element times its scale.

    `stored` has the tensors that the weight keeps, by the name of their field.
    """

    values: Tensor
    stored: Mapping[str, Tensor] = field(default_factory=lambda: MappingProxyType({}))


class NumberFormat(ABC):
    """A format that weights can be rounded to."""

    kind: type[CompressedWeight]
    """The kind of weight that `pack` makes."""

    bits: float
    """Bits of a weight, with the scales of groups. Scales of rows and of larger blocks do not count."""

    group_size: int = 0
    """Neighbouring columns with one scale; 0 if a row has one scale. The last group may have fewer."""

    code_bits: int | None = None
    """The width of its elements if they are integer codes, in a `QuantizedWeight`; else None."""

    is_lossy: bool = True
    """Whether rounding to it loses so much that errors are worth compensating in other columns."""

    def fits(self, cols: int) -> bool:
        """Whether rows of this many weights can be stored."""
        return True

    @abstractmethod
    def size_bytes(self, rows: int, cols: int, *, scale_bytes: int) -> int:
        """Bytes of a packed weight. `scale_bytes` are those of a scale whose type the format leaves open."""

    @abstractmethod
    def scales(self, weights: Sequence[Tensor], settings: ScaleSettings) -> list[Scales]:
        """The scales of weights (rows_i, cols), float32, that read one input. Engines may run them as one layer."""

    @abstractmethod
    def round(self, x: Tensor) -> Tensor:
        """The nearest element of every number, as a new float32 tensor."""

    @abstractmethod
    def pack(self, elements: Tensor, scales: Scales) -> CompressedWeight:
        """The weight with these elements (rows, cols), float32."""


_FORMATS: dict[str, NumberFormat] = {}

F = TypeVar("F", bound=NumberFormat)


def register_number_format(name: str, number_format: F) -> F:
    """Make a format available under a name. Raises ValueError if another format has this name."""
    registered = _FORMATS.get(name)
    if registered is not None and type(registered).__qualname__ != type(number_format).__qualname__:
        raise ValueError(f"{name!r} is already the name of {type(registered).__qualname__}: choose another name")
    _FORMATS[name] = number_format
    return number_format


def number_formats() -> Mapping[str, NumberFormat]:
    """All formats by name."""
    return MappingProxyType(_FORMATS)


def times_scales(elements: Tensor, values: Tensor, *, group_size: int) -> Tensor:
    """Elements (rows, cols) times the scales of their groups, `values` (rows, groups). 0 is a group of all columns."""
    cols = elements.shape[1]
    if group_size and cols % group_size:
        return elements * per_column(values, group_size, cols=cols)
    return (elements.unflatten(1, (-1, group_size or cols)) * values.unsqueeze(2)).flatten(1)


def per_column(values: Tensor, group_size: int, *, cols: int) -> Tensor:
    """The scale of every weight, (rows, cols), from those of groups, (rows, groups)."""
    return values.repeat_interleave(group_size or cols, 1)[:, :cols]


def largest_of_groups(weight: Tensor, group_size: int) -> Tensor:
    """The largest magnitude of every group of columns of weight (rows, cols), as (rows, groups)."""
    return weight.unflatten(1, (-1, group_size)).abs().amax(2)
