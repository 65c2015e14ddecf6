"""Packed weights in the layouts of compressed-tensors, with a format per layer, for transformers and vLLM."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel

from evopress.compressors.base import Compressor
from evopress.compressors.drop import Drop
from evopress.export.base import (
    Format,
    UnsupportedExportError,
    check_code,
    check_halves,
    check_no_experts,
    check_package,
)
from evopress.export.config_files import config_without_dropped_blocks, write_config_files
from evopress.export.formats.hf import FROM_PRETRAINED
from evopress.export.formats.packed_layers import (
    check_decodes,
    decoded_state,
    parts_of,
    quantization_config,
)
from evopress.export.formats.vllm_limits import (
    FUSED_LAYERS,
    check_blocks,
    check_fused_layers,
    check_widths,
    check_zero_points,
)
from evopress.export.planned import PlannedModel
from evopress.export.registry import register_format
from evopress.export.searched import SearchedModel
from evopress.export.settings import Export
from evopress.export.state import load_state, read_safetensors, write_safetensors
from evopress.models.checkpoints import empty_model, read_config_values, read_folder, read_folder_config
from evopress.space.settings import SpaceSettings
from evopress.weights.base import CompressedWeight, PackedLayer

SHAPE_BYTES = 16
"""Bytes of `weight_shape`, which are two 64-bit integers."""

KV_CACHE = (
    "The checkpoint does not set the type of the key-value cache, so vLLM keeps it in 16 bits. `vllm serve` has the "
    "option `--kv-cache-dtype fp8` for a smaller cache. The numbers below do not include its loss."
)

NO_ZERO_POINTS = (
    "transformers cannot read packed zero points (compressed-tensors 0.20 expects another shape for them): "
    "set compress.symmetric=true, or export.engine=vllm"
)


@register_format
class CompressedTensors(Format):
    """Codes, scales and zero points exactly as they are in the database. Embeddings and head have 16 bits.

    Layers of different formats make a checkpoint of the format mixed-precision.

    With the engine vllm, only models that vLLM can run are accepted.
    """

    name: ClassVar[str] = "compressed_tensors"
    packs_levels: ClassVar[bool] = True
    title: ClassVar[str] = "compressed-tensors, a width or number format per layer"
    tags: ClassVar[tuple[str, ...]] = ("compressed-tensors",)
    engines: tuple[str, ...] = ("vllm",)

    def __init__(self, engine: str = "transformers"):
        self.engine = engine
        self.remark = KV_CACHE if engine == "vllm" else ""
        self.engines = ("vllm",) if engine == "vllm" else ()
        self.cache_types = Format.cache_types if engine == "vllm" else ("f16", "bf16")
        self.library = "vllm" if engine == "vllm" else "transformers"
        self.commands = (
            ("vllm serve {folder}",)
            if engine == "vllm"
            else ("pip install 'compressed-tensors>=0.18'", FROM_PRETRAINED)
        )

    @classmethod
    def from_settings(cls, settings: Export) -> Self:
        return cls(settings.engine)

    @classmethod
    def recognizes(cls, folder: Path, config: Mapping[str, object]) -> bool:
        return "quantization_config" in config

    def check_settings(self, compressor: Compressor | Drop, space: SpaceSettings) -> None:
        check_package(self, "compressed_tensors", extra="export")
        kinds = compressor.weight_kinds if isinstance(compressor, Compressor) else frozenset()
        if not kinds or not all(kind.has_packed_layer for kind in kinds):
            raise UnsupportedExportError(
                "export.formats=[compressed_tensors] holds integer codes and number formats, which "
                f"compress={type(compressor).__name__.lower()} does not make: use compress=gptq, rtn or float, or "
                "export.formats=[hf]"
            )
        check_halves(self, compressor, space)
        assert isinstance(compressor, Compressor)  # others have no kinds
        if self.engine == "transformers" and compressor.zero_point_bits:
            raise UnsupportedExportError(NO_ZERO_POINTS)
        if self.engine == "vllm" and space.tie not in ("engine", "block"):
            raise UnsupportedExportError(
                f"export.engine=vllm needs layers that share a level ({FUSED_LAYERS}): set space.tie=engine"
            )
        if self.engine == "vllm":
            check_widths(compressor.code_bits, where="compress.bits contains")

    def check_model(self, planned: PlannedModel) -> None:
        compressor = planned.compressor
        assert isinstance(compressor, Compressor)  # see check_settings
        check_code(self, planned.lm)
        check_no_experts(self, planned.lm)
        if compressor.scale_type:
            _check_scales(compressor.scale_type, planned.lm.dtype)
        _check_compute_type(compressor.weight_kinds, planned.lm.dtype)
        if self.engine == "vllm":
            check_blocks(planned.units, compressor.weight_kinds)
            for layer in planned.layers:
                check_zero_points(layer.name, layer.rows, all_bits=compressor.zero_point_bits)

    def check_profile(self, searched: SearchedModel) -> None:
        check_no_experts(self, searched.lm)
        others = [layer for layer in searched.levels if not searched.packed(layer).has_packed_layer]
        if others or not searched.levels:
            raise UnsupportedExportError(
                "export.formats=[compressed_tensors] holds integer codes and number formats, which "
                f"{others[0] if others else 'the profile'} does not have: use compress=gptq, rtn or float, or "
                "export.formats=[hf]"
            )
        _check_compute_type(searched.weight_kinds, searched.lm.dtype)
        layers = _packed_layers(searched)
        for layer in layers.values():
            if (scales := _cast_scales(layer)) is not None:
                _check_scales(scales, searched.lm.dtype)
        zero_point_bits = {
            name: int(str(layer.weights["num_bits"]))
            for name, layer in layers.items()
            if "weight_zero_point" in layer.tensors
        }
        if self.engine == "vllm":
            packed = [layer for layer in layers.values() if layer.format == "pack-quantized"]
            check_widths((int(str(layer.weights["num_bits"])) for layer in packed), where="the profile has")
            check_fused_layers(searched, layers)
            for name, bits in zero_point_bits.items():
                check_zero_points(name, searched.packed(name).shape[0], all_bits=[bits])
        elif zero_point_bits:
            raise UnsupportedExportError(NO_ZERO_POINTS)

    def default_dtype(self, searched: SearchedModel) -> torch.dtype:
        """The type of the scales, because engines cast scales to the type in which they compute."""
        types = {_cast_scales(layer) for layer in _packed_layers(searched).values()} - {None, torch.float32}
        return types.pop() or super().default_dtype(searched) if len(types) == 1 else super().default_dtype(searched)

    def as_stored(self, name: str, tensor: Tensor, *, searched: SearchedModel, dtype: torch.dtype) -> Tensor:
        return tensor if name.removesuffix(".weight") in searched.levels else tensor.to(dtype)

    def predicted_bytes(self, searched: SearchedModel, dtype: torch.dtype) -> int:
        num_uncompressed = sum(tensor.numel() for tensor in searched.uncompressed_tensors().values())
        num_shapes = sum("weight_shape" in parts for parts in self._predicted_parts(searched).values())
        return searched.level_bytes + dtype.itemsize * num_uncompressed + SHAPE_BYTES * num_shapes

    def predicted_names(self, searched: SearchedModel) -> list[str]:
        packed = [f"{layer}.{part}" for layer, parts in self._predicted_parts(searched).items() for part in parts]
        return [*searched.uncompressed_tensors(), *packed]

    def _predicted_parts(self, searched: SearchedModel) -> dict[str, Collection[str]]:
        """The parts of every layer. Before levels are known, these are the parts of the largest layout."""
        if searched.weights is None:
            parts = ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point")
            return dict.fromkeys(searched.levels, parts if self.engine == "vllm" else parts[:3])
        return {name: layer.tensors.keys() for name, layer in _packed_layers(searched).items()}

    def write(self, searched: SearchedModel, folder: Path, *, dtype: torch.dtype) -> None:
        state = searched.dense_state(dtype, excluded=searched.levels)
        layers = _packed_layers(searched)
        for name, layer in layers.items():
            state.update({f"{name}.{part}": tensor for part, tensor in layer.tensors.items()})
        write_safetensors(searched.renumbered(state), folder)
        config = config_without_dropped_blocks(searched, dtype)
        config.quantization_config = quantization_config(searched.renumbered(layers), head=searched.lm.family.head)
        write_config_files(config, searched.lm, folder)

    def load(self, folder: Path, dtype: torch.dtype, *, attention: str | None = None) -> PreTrainedModel:
        """Load with transformers. It cannot read zero points, so checkpoints that have them are decoded here."""
        config, values = read_folder_config(folder), read_config_values(folder)
        groups = _groups(values)
        if all(group["weights"]["symmetric"] for group in groups):
            return read_folder(folder, config, dtype=dtype, attention=attention)
        del config.quantization_config
        model = empty_model(config, dtype=dtype, attention=attention)
        widths = {layer: group["weights"]["num_bits"] for group in groups for layer in group["targets"]}
        load_state(model, decoded_state(folder, widths))
        return model

    def check_files(self, searched: SearchedModel, folder: Path, *, dtype: torch.dtype) -> dict[str, object]:
        """Decode every layer with the library, and compare its tensors and numbers with the database."""
        state = read_safetensors(folder)
        for new_name, name in searched.renumbered({name: name for name in searched.levels}).items():
            check_decodes(parts_of(new_name, state), searched.packed(name), name=f"{self.name}: {new_name}")
        return {"layers_with_equal_codes": len(searched.levels)}


def _groups(values: Mapping[str, object]) -> list[dict[str, Any]]:
    """The groups of layers in a config.json. Raises ValueError if the weights are packed in another way."""
    settings = values["quantization_config"]
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    if not isinstance(settings, dict) or method != "compressed-tensors":
        raise ValueError(f"its weights are packed by {method!r}, but only compressed-tensors can be read")
    return list(settings["config_groups"].values())


def _packed_layers(searched: SearchedModel) -> dict[str, PackedLayer]:
    return {layer: searched.packed(layer).packed_layer() for layer in searched.levels}


def _cast_scales(layer: PackedLayer) -> torch.dtype | None:
    """The type of the scales, unless they are of one byte. Engines cast others to the type in which they compute."""
    scales = layer.tensors.get("weight_scale")
    return None if scales is None or scales.element_size() == 1 else scales.dtype


def _check_scales(scales: torch.dtype, compute: torch.dtype) -> None:
    """Raise UnsupportedExportError if engines would round the scales when they cast them to their compute type."""
    if compute.itemsize == 2 and scales != compute:
        name = _type_name(compute)
        raise UnsupportedExportError(
            f"export.formats=[compressed_tensors]: the model computes in {name}, so engines would round the scales, "
            f"{_type_name(scales)}, to it: set compress.scale_dtype={name}, or model.dtype=float32"
        )


def _check_compute_type(kinds: Collection[type[CompressedWeight]], compute: torch.dtype) -> None:
    """Raise UnsupportedExportError if the library decodes weights in another type than that of the model."""
    for kind in kinds:
        if kind.decoded_in not in (None, compute):
            raise UnsupportedExportError(
                f"export.formats=[compressed_tensors]: the model computes in {_type_name(compute)}, but "
                f"compressed-tensors decodes {kind.__name__.removesuffix('Weight')} in {_type_name(kind.decoded_in)}: "
                f"set model.dtype={_type_name(kind.decoded_in)}, or take other compress.levels"
            )


def _type_name(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix("torch.")
