"""The contract of a compressed weight, and the registry of the kinds of weight that can be read from a file.

The search and the export decode the same packed weights, so both see the same numbers.

A new kind of weight takes one module: a subclass of `CompressedWeight`, and a reader that undoes its `tensors` and
`spec`. The module must be imported before its weights are read; no file can cause an import.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

Spec = dict[str, str | int]
"""What a reader needs besides the tensors, as JSON. The key `kind` selects the reader."""


@dataclass(frozen=True)
class FloatPart:
    """A floating-point part of a weight, such as its scales: the stored `value`, and the `unit` of its changes.

    Both are float32 of one shape. Changing every element by one unit changes the weight by about its own magnitude.
    """

    value: Tensor
    unit: Tensor


@dataclass(frozen=True)
class PackedLayer:
    """A layer in a checkpoint of compressed-tensors.

    `format` is the library's name of the layout, and `weights` are the arguments of the layer's weights in
    `config_groups`, as JSON. `tensors` replace the layer's weight. Their keys follow the layer's name: `weight_packed`,
    `weight_scale` and so on. With the format `dense`, the layer is one that the checkpoint ignores.
    """

    format: str
    weights: Mapping[str, object]
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True)
class GgufRows:
    """A layer in a GGUF file: the bytes of its rows, uint8 (rows, bytes), and the name of their ggml type."""

    data: Tensor
    type_name: str


class CompressedWeight(ABC):
    """One layer at one level. Immutable; holds packed tensors only, never a dense copy. A subclass is a dataclass."""

    is_quantized: ClassVar[bool] = True
    """Whether the weights are rounded to a few values."""

    removes_weights: ClassVar[bool] = False
    """Whether weights are removed, which dense formats store as zeros."""

    is_ggml_type: ClassVar[bool] = False
    """Whether every weight of the kind has a ggml type, see `gguf_rows`."""

    has_packed_layer: ClassVar[bool] = False
    """Whether compressed-tensors has a layout for the kind, which `packed_layer` returns."""

    decoded_in: ClassVar[torch.dtype | None] = None
    """The type in which compressed-tensors decodes the kind, if it is always the same. The model must compute in it."""

    rows_of_block: ClassVar[int] = 1
    """Rows that share a scale. Of layers that engines run as one, all but the last must fill whole blocks."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the dense weight."""

    @property
    @abstractmethod
    def size_bytes(self) -> int:
        """Bytes of the tensors in a file."""

    @abstractmethod
    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight (rows, cols) as a new tensor, decoded in float32 and then cast."""

    def float_parts(self) -> dict[str, FloatPart]:
        """The parts that can be tuned while the codes stay the same, by name. Empty for a kind without such parts."""
        return {}

    def dense_with(self, values: Mapping[str, Tensor]) -> Tensor:
        """The decoded weight (rows, cols) with `values` for its float parts. Has their dtype, and a graph back to them.

        `values` has all names of `float_parts`. A kind with float parts overrides this.
        """
        raise NotImplementedError(f"{type(self).__name__} has no parts to tune")

    def with_float_parts(self, values: Mapping[str, Tensor]) -> Self:
        """The weight with `values` for its float parts, rounded to what the kind can store. Its size stays the same."""
        raise NotImplementedError(f"{type(self).__name__} has no parts to tune")

    def to(self, device: torch.device) -> Self:
        """The same weight on a device. The copy may still be in progress."""
        parts = {part.name: getattr(self, part.name) for part in fields(self)}  # type: ignore[arg-type]
        moved = {name: _sent(part, device) for name, part in parts.items() if isinstance(part, Tensor)}
        return replace(self, **moved)  # type: ignore[type-var]

    def packed_layer(self) -> PackedLayer:
        """The layer as compressed-tensors stores it. Its tensors are contiguous and on the CPU."""
        raise NotImplementedError(f"compressed-tensors has no layout for {type(self).__name__}")

    def gguf_rows(self) -> GgufRows | None:
        """The layer as a GGUF file stores it, without rounding. None if no ggml type has its grid."""
        return None

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The tensors that are written to a file. Together they have `size_bytes`."""

    @abstractmethod
    def spec(self) -> Spec:
        """What the reader needs besides the tensors. Contains the registered `kind`."""


Reader = Callable[[Mapping[str, object], Mapping[str, Tensor]], CompressedWeight]
"""Makes a weight from its spec and tensors. Raises ValueError for anything that `spec` and `tensors` never write."""

_READERS: dict[str, Reader] = {}


def register_reader(kind: str) -> Callable[[Reader], Reader]:
    """Decorator of the function that reads weights whose spec has this `kind`.

    An example::

        @register_reader("fp8")
        def _read(spec, tensors):
            return Fp8Weight(checked_matrix(tensors, "weight", dtypes=(torch.float8_e4m3fn,)))

    Raises:
        ValueError: Another function reads this kind.
    """

    def register(reader: Reader) -> Reader:
        registered = _READERS.get(kind)
        if registered is not None and _full_name(registered) != _full_name(reader):  # reloaded modules register again
            raise ValueError(f"weights of kind {kind!r} are read by {_full_name(registered)}: choose another kind")
        _READERS[kind] = reader
        return reader

    return register


def _full_name(reader: Reader) -> str:
    return f"{reader.__module__}.{reader.__qualname__}"


def from_tensors(spec: Mapping[str, object], tensors: Mapping[str, Tensor]) -> CompressedWeight:
    """The weight that has this `spec` and these `tensors`.

    Raises:
        ValueError: The kind is not registered, or its reader refuses the spec or the tensors.
    """
    kind = spec.get("kind")
    if not isinstance(kind, str) or kind not in _READERS:
        raise ValueError(
            f"unknown kind of weight {kind!r}: expected one of {', '.join(sorted(_READERS))}; "
            "a kind from another package is known once its module is imported"
        )
    return _READERS[kind](spec, tensors)


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device. A copy to a GPU is asynchronous only from pinned memory."""
    is_pinnable = device.type == "cuda" and tensor.device.type == "cpu" and torch.cuda.is_available()
    return (tensor.pin_memory() if is_pinnable else tensor).to(device, non_blocking=True)
