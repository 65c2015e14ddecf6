"""Packed integer codes in the layout of compressed-tensors, with a width per layer, for transformers and vLLM."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel

from evopress.compressors.base import Compressor
from evopress.compressors.drop import Drop
from evopress.compressors.integer_levels import IntegerLevels
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
from evopress.export.formats.pack_quantized import (
    PARTS,
    SHAPE_BYTES,
    decoded_state,
    is_same,
    packed_tensors,
    parts_of,
    quantization_config,
)
from evopress.export.formats.vllm_limits import FUSED_LAYERS, check_fused_layers, check_zero_points
from evopress.export.planned import PlannedModel
from evopress.export.registry import register_format
from evopress.export.searched import SearchedModel
from evopress.export.settings import Export
from evopress.export.state import load_state, read_safetensors, write_safetensors
from evopress.models.checkpoints import empty_model, read_config_values, read_folder, read_folder_config
from evopress.space.settings import SpaceSettings
from evopress.weights.integer import QuantizedWeight

NO_ZERO_POINTS = (
    "transformers cannot read packed zero points (compressed-tensors 0.20 expects another shape for them): "
    "set compress.symmetric=true, or export.engine=vllm"
)


@register_format
class CompressedTensors(Format):
    """Codes, scales and zero points exactly as they are in the database. Embeddings and head have 16 bits.

    With the engine vllm, only models that vLLM can run are accepted.
    """

    name: ClassVar[str] = "compressed_tensors"
    packs_levels: ClassVar[bool] = True
    title: ClassVar[str] = "compressed-tensors, pack-quantized, a width per layer"
    tags: ClassVar[tuple[str, ...]] = ("compressed-tensors",)

    def __init__(self, engine: str = "transformers"):
        self.engine = engine
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
        if not isinstance(compressor, IntegerLevels):
            raise UnsupportedExportError(
                "export.formats=[compressed_tensors] holds integer codes, which "
                f"compress={type(compressor).__name__.lower()} does not make: use compress=gptq or compress=rtn, or "
                "export.formats=[hf]"
            )
        check_halves(self, compressor, space)
        if self.engine == "transformers" and not compressor.symmetric:
            raise UnsupportedExportError(NO_ZERO_POINTS)
        if self.engine == "vllm" and space.tie != "engine":
            raise UnsupportedExportError(
                f"export.engine=vllm needs layers that share a level ({FUSED_LAYERS}): set space.tie=engine"
            )

    def check_model(self, planned: PlannedModel) -> None:
        compressor = planned.compressor
        assert isinstance(compressor, IntegerLevels)  # see check_settings
        check_code(self, planned.lm)
        check_no_experts(self, planned.lm)
        _check_scales(getattr(torch, compressor.scale_dtype), planned.lm.dtype)
        if self.engine == "vllm" and not compressor.symmetric:
            for layer in planned.layers:
                check_zero_points(layer.name, layer.rows, all_bits=compressor.bits)

    def check_profile(self, searched: SearchedModel) -> None:
        check_no_experts(self, searched.lm)
        weights = _quantized_weights(searched)
        other_layers = [layer for layer in searched.levels if layer not in weights]
        if other_layers or not searched.levels:
            raise UnsupportedExportError(
                "export.formats=[compressed_tensors] holds integer codes, which "
                f"{other_layers[0] if other_layers else 'the profile'} does not have: use compress=gptq or rtn, or "
                "export.formats=[hf]"
            )
        _check_scales(self.default_dtype(searched), searched.lm.dtype)
        if self.engine == "vllm":
            check_fused_layers(searched, weights)
            for layer, weight in weights.items():
                if not weight.symmetric:
                    check_zero_points(layer, weight.shape[0], all_bits=[weight.bits])
        elif not all(weight.symmetric for weight in weights.values()):
            raise UnsupportedExportError(NO_ZERO_POINTS)

    def default_dtype(self, searched: SearchedModel) -> torch.dtype:
        """The type of the scales, because engines cast scales to the type in which they compute."""
        first = searched.packed(next(iter(searched.levels)))
        assert isinstance(first, QuantizedWeight)
        scales = first.scales.dtype
        return scales if scales.itemsize == 2 else super().default_dtype(searched)

    def as_stored(self, name: str, tensor: Tensor, *, searched: SearchedModel, dtype: torch.dtype) -> Tensor:
        return tensor if name.removesuffix(".weight") in searched.levels else tensor.to(dtype)

    def predicted_bytes(self, searched: SearchedModel, dtype: torch.dtype) -> int:
        num_uncompressed = sum(tensor.numel() for tensor in searched.uncompressed_tensors().values())
        return searched.level_bytes + dtype.itemsize * num_uncompressed + SHAPE_BYTES * len(searched.levels)

    def predicted_names(self, searched: SearchedModel) -> list[str]:
        parts = PARTS if self.engine == "vllm" else PARTS[:3]
        packed = [f"{layer}.{part}" for layer in searched.levels for part in parts]
        return [*searched.uncompressed_tensors(), *packed]

    def write(self, searched: SearchedModel, folder: Path, *, dtype: torch.dtype) -> None:
        state = searched.dense_state(dtype, excluded=searched.levels)
        weights = _quantized_weights(searched)
        for layer, weight in weights.items():
            state.update({f"{layer}.{part}": tensor for part, tensor in packed_tensors(weight).items()})
        write_safetensors(searched.renumbered(state), folder)
        config = config_without_dropped_blocks(searched, dtype)
        config.quantization_config = quantization_config(searched.renumbered(weights), head=searched.lm.family.head)
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
        """Unpack every layer with the library, and compare its codes, scales and zero points with the database."""
        state = read_safetensors(folder)
        for layer, weight in searched.renumbered(_quantized_weights(searched)).items():
            if not is_same(parts_of(layer, state), weight):
                raise ValueError(f"{self.name}: {layer} does not decode to the codes of the database")
        return {"layers_with_equal_codes": len(searched.levels)}


def _groups(values: Mapping[str, object]) -> list[dict[str, Any]]:
    """The groups of layers in a config.json. Raises ValueError if the weights are packed in another way."""
    settings = values["quantization_config"]
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    if not isinstance(settings, dict) or method != "compressed-tensors":
        raise ValueError(f"its weights are packed by {method!r}, but only compressed-tensors can be read")
    return list(settings["config_groups"].values())


def _quantized_weights(searched: SearchedModel) -> dict[str, QuantizedWeight]:
    """The chosen levels that are integer codes."""
    weights = {layer: searched.packed(layer) for layer in searched.levels}
    return {layer: weight for layer, weight in weights.items() if isinstance(weight, QuantizedWeight)}


def _check_scales(scales: torch.dtype, compute: torch.dtype) -> None:
    """Raise UnsupportedExportError if engines would round the scales when they cast them to their compute type."""
    if compute.itemsize == 2 and scales != compute:
        name = str(compute).removeprefix("torch.")
        raise UnsupportedExportError(
            f"export.formats=[compressed_tensors]: the model computes in {name}, so engines would round the scales, "
            f"{str(scales).removeprefix('torch.')}, to it: set compress.scale_dtype={name}, or model.dtype=float32"
        )
