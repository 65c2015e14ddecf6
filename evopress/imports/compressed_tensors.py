"""Checkpoints of compressed-tensors: packed integers and number formats."""

import re
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from evopress.imports.base import Source, StoredLayer
from evopress.imports.safetensors_files import SafetensorsFiles
from evopress.weights.base import CompressedWeight, from_tensors
from evopress.weights.fp8 import FP8Weight
from evopress.weights.fp8_block import FP8BlockWeight
from evopress.weights.integer import QuantizedWeight
from evopress.weights.mxfp4 import MXFP4Weight
from evopress.weights.nvfp4 import NVFP4Weight
from evopress.weights.packing import num_words

Parts = Mapping[str, str]
"""The name of each tensor of a kind, by the part of its name in the checkpoint."""

FP8_PARTS = {"weight": "codes", "weight_scale": "scales"}

NUMBER_FORMATS: Mapping[tuple[str, str], tuple[str, type[CompressedWeight], Parts]] = {
    # by format and strategy
    ("float-quantized", "channel"): ("fp8", FP8Weight, FP8_PARTS),
    ("float-quantized", "block"): ("fp8_block", FP8BlockWeight, FP8_PARTS),
    ("mxfp4-pack-quantized", "group"): (
        "mxfp4",
        MXFP4Weight,
        {"weight_packed": "packed", "weight_scale": "exponents"},
    ),
    ("nvfp4-pack-quantized", "tensor_group"): (
        "nvfp4",
        NVFP4Weight,
        {"weight_packed": "packed", "weight_scale": "scales", "weight_global_scale": "divisor"},
    ),
}

INTEGERS = "pack-quantized"


class CompressedTensorsFolder(Source):
    """A folder in which each layer belongs to one of `config_groups`."""

    form: ClassVar[str] = "compressed-tensors"

    def __init__(self, path: Path, settings: Mapping[str, Any]):
        super().__init__(path)
        self.tensors = SafetensorsFiles(path)
        self.groups = [{**group, "targets": list(group["targets"])} for group in settings["config_groups"].values()]
        self.ignored = settings.get("ignore") or []
        self.format = settings.get("format")

    @property
    def files(self) -> list[Path]:
        return [self.path / "config.json", *self.tensors.paths]

    @property
    def kinds(self) -> Collection[type[CompressedWeight]]:
        keys = [(self._format_of(group), str(group["weights"].get("strategy"))) for group in self.groups]
        named = {NUMBER_FORMATS[key][1] for key in keys if key in NUMBER_FORMATS}
        return named | ({QuantizedWeight} if self.integers else set())

    @property
    def integers(self) -> Collection[tuple[int, bool]]:
        arguments = [group["weights"] for group in self.groups if self._format_of(group) == INTEGERS]
        return {(int(each["num_bits"]), bool(each["symmetric"])) for each in arguments}

    @cached_property
    def scale_types(self) -> Collection[torch.dtype]:
        return self.tensors.scale_types(".weight_scale")

    def compresses(self, layer: str) -> bool:
        return self._group_of(layer) is not None

    def stored(self, layer: str, shape: tuple[int, int]) -> StoredLayer | None:
        group = self._group_of(layer)
        if group is None:
            return None
        arguments = group["weights"]
        if self._format_of(group) == INTEGERS:
            return self._stored_integers(layer, shape, arguments)
        _, kind, parts = self._number_format(layer, group)
        self._check_parts(layer, parts)
        return StoredLayer(kind, self._bytes(layer, parts))

    def _stored_integers(self, layer: str, shape: tuple[int, int], arguments: Mapping[str, Any]) -> StoredLayer:
        bits, symmetric = int(arguments["num_bits"]), bool(arguments["symmetric"])
        parts = ("weight_packed", "weight_scale", *(() if symmetric else ("weight_zero_point",)))
        self._check_parts(layer, parts)
        if f"{layer}.weight_g_idx" in self.tensors:
            raise self.error(
                f"{layer}.weight_g_idx",
                "orders columns by groups, which cannot be imported: use a checkpoint without actorder=group",
            )
        rows, cols = shape
        found, _ = self.tensors.header(f"{layer}.weight_packed")
        expected = [rows, num_words(cols, bits)]
        if found != expected:
            raise self.error(
                f"{layer}.weight_packed",
                f"has the shape {found}, but {rows} × {cols} weights of {bits} bits are {expected}: it is of another "
                "model, or was packed by compressed-tensors before 0.18",
            )
        return StoredLayer(QuantizedWeight, self._bytes(layer, parts))

    def read(self, layer: str, shape: tuple[int, int]) -> CompressedWeight:
        group = self._group_of(layer)
        assert group is not None
        if self._format_of(group) == INTEGERS:
            spec: dict[str, object] = {"kind": "quantized", "bits": int(group["weights"]["num_bits"]), "cols": shape[1]}
            parts = {"weight_packed": "codes", "weight_scale": "scales"}
            tensors = {name: self.tensors.read(f"{layer}.{part}") for part, name in parts.items()}
            if not group["weights"]["symmetric"]:
                tensors["zeros"] = self.tensors.read(f"{layer}.weight_zero_point").t().contiguous()
        else:
            kind, _, named = self._number_format(layer, group)
            spec = {"kind": kind}
            tensors = {name: self.tensors.read(f"{layer}.{part}") for part, name in named.items()}
        try:
            weight = from_tensors(spec, tensors)
        except ValueError as error:
            raise self.error(layer, f"cannot be read: {error}") from error
        if weight.shape != shape:
            raise self.error(layer, f"has the shape {weight.shape}, but in the model it has {shape}")
        return weight

    def plain(self, name: str) -> Tensor | None:
        return self.tensors.read(name) if name in self.tensors else None

    def _group_of(self, layer: str) -> dict[str, Any] | None:
        """The group of a layer; None if it is not compressed."""
        if any(_matches(target, layer) for target in self.ignored):
            return None
        matching = (group for group in self.groups if any(_matches(target, layer) for target in group["targets"]))
        group = next(matching, None)
        is_compressed = f"{layer}.weight_scale" in self.tensors
        return group if is_compressed else None

    def _format_of(self, group: Mapping[str, Any]) -> str:
        return str(group.get("format") or self.format)

    def _number_format(self, layer: str, group: Mapping[str, Any]) -> tuple[str, type[CompressedWeight], Parts]:
        key = self._format_of(group), str(group["weights"].get("strategy"))
        if key not in NUMBER_FORMATS:
            raise self.error(layer, f"has the format {key[0]} with the strategy {key[1]}, which cannot be imported")
        return NUMBER_FORMATS[key]

    def _check_parts(self, layer: str, parts: Parts | tuple[str, ...]) -> None:
        for part in parts:
            if f"{layer}.{part}" not in self.tensors:
                raise self.error(f"{layer}.{part}", "is missing")

    def _bytes(self, layer: str, parts: Parts | tuple[str, ...]) -> int:
        return sum(self.tensors.num_bytes(f"{layer}.{part}") for part in parts)


def _matches(target: str, layer: str) -> bool:
    """Whether a target names a layer: by its name, by a regular expression after `re:`, or because it names all."""
    if target.startswith("re:"):
        return re.match(target.removeprefix("re:"), layer) is not None
    return target in (layer, "Linear")
