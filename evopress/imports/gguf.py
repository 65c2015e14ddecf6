"""Layers of a GGUF file, in the names and the order of rows of transformers."""

from collections.abc import Callable, Collection
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from evopress.imports.base import Source, StoredLayer
from evopress.weights.base import CompressedWeight, from_tensors
from evopress.weights.ggml import GGML_TYPES, GgmlWeight, kind_of
from evopress.weights.iquants import IWeight
from evopress.weights.kquants import KWeight

ARCHITECTURES = ("llama", "qwen2", "qwen3")

PLAIN_TYPES = ("F32", "F16", "BF16")

HEADS = {"attn_q": "head_count", "attn_k": "head_count_kv"}
"""The key of the number of heads, for layers whose rows have another order in files of the architecture llama."""


class GGUFSource(Source):
    """A GGUF file. Its weights are memory-mapped."""

    form: ClassVar[str] = "GGUF"

    def __init__(self, path: Path):
        super().__init__(path)
        if self._architecture not in ARCHITECTURES:
            raise ValueError(
                f"compress.sources: {path} has the architecture {self._architecture!r}, but only files of "
                f"{', '.join(ARCHITECTURES)} can be imported"
            )

    @property
    def files(self) -> list[Path]:
        return [self.path]

    @cached_property
    def _reader(self) -> Any:
        try:
            from gguf import GGUFReader  # optional package
        except ImportError as error:
            raise ValueError("compress.sources: GGUF files need a package: pip install 'evopress[gguf]'") from error
        try:
            return GGUFReader(self.path)
        except Exception as error:  # a damaged file can raise errors of many types
            raise ValueError(f"compress.sources: {self.path} cannot be read: {error}") from error

    @cached_property
    def _tensors(self) -> dict[str, Any]:
        return {tensor.name: tensor for tensor in self._reader.tensors}

    @cached_property
    def _architecture(self) -> str:
        return str(self._field("general.architecture"))

    def _field(self, key: str) -> Any:
        field = self._reader.fields.get(key)
        if field is None:
            raise ValueError(f"compress.sources: {self.path} has no metadata {key}: use a complete GGUF file")
        return field.contents()

    @cached_property
    def _rename(self) -> Callable[[str], str | None]:
        from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

        arch = next(key for key in MODEL_ARCH if MODEL_ARCH_NAMES[key] == self._architecture)
        names = get_tensor_name_map(arch, int(self._field(f"{self._architecture}.block_count")))
        return lambda name: names.get_name(name, try_suffixes=(".weight", ".bias"))

    def _tensor(self, name: str) -> Any:
        """The tensor with this name in transformers; None if the file has none."""
        return self._tensors.get(self._rename(name) or "")

    @property
    def kinds(self) -> Collection[type[CompressedWeight]]:
        return GgmlWeight, KWeight, IWeight

    @property
    def integers(self) -> Collection[tuple[int, bool]]:
        return ()

    def compresses(self, layer: str) -> bool:
        tensor = self._tensor(f"{layer}.weight")
        return tensor is not None and tensor.tensor_type.name not in PLAIN_TYPES

    def stored(self, layer: str, shape: tuple[int, int]) -> StoredLayer | None:
        if not self.compresses(layer):
            return None
        tensor = self._tensor(f"{layer}.weight")
        name = tensor.tensor_type.name
        if name not in GGML_TYPES:
            raise self.error(tensor.name, f"has the type {name}, which cannot be imported")
        found = tuple(int(size) for size in reversed(tensor.shape))
        if found != shape:
            raise self.error(tensor.name, f"has the shape {found}, but in the model it has {shape}")
        return StoredLayer(kind_of(name), int(tensor.n_bytes))

    def read(self, layer: str, shape: tuple[int, int]) -> CompressedWeight:
        tensor = self._tensor(f"{layer}.weight")
        rows = torch.tensor(tensor.data).view(torch.uint8).reshape(shape[0], -1)
        try:
            data = self._in_order(tensor.name, rows)
            weight = from_tensors({"kind": "ggml", "type": tensor.tensor_type.name}, {"data": data})
        except (ValueError, RuntimeError) as error:
            raise self.error(tensor.name, f"cannot be read: {error}") from error
        if weight.shape != shape:
            raise self.error(tensor.name, f"has the shape {weight.shape}, but in the model it has {shape}")
        return weight

    def _in_order(self, name: str, rows: Tensor) -> Tensor:
        """The rows in the order of transformers. Files of Llama interleave the halves of the heads of q and k."""
        key = HEADS.get(name.split(".")[-2])
        if self._architecture != "llama" or key is None:
            return rows.contiguous()
        heads = int(self._field(f"llama.attention.{key}"))
        return rows.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2).contiguous()

    def plain(self, name: str) -> Tensor | None:
        tensor = self._tensor(name)
        if tensor is None or tensor.tensor_type.name != "F32":
            return None
        return torch.tensor(tensor.data).reshape([int(size) for size in reversed(tensor.shape)])
