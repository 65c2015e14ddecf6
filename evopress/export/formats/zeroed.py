"""Plain safetensors of a model in its original shape, where dropped sub-blocks output zero."""

from pathlib import Path
from typing import ClassVar

import torch

from evopress.compressors.base import Compressor
from evopress.compressors.drop import Drop
from evopress.export.config_files import model_config, write_config_files
from evopress.export.formats.hf import DenseSafetensors
from evopress.export.registry import register_format
from evopress.export.searched import SearchedModel
from evopress.export.state import State, untied_tensors, write_safetensors
from evopress.models.subblocks import SUBBLOCKS
from evopress.space.settings import SpaceSettings


@register_format
class ZeroedSafetensors(DenseSafetensors):
    """Stores dropped sub-blocks with zeros in their last layers. The model is exact, and as large as the dense one.

    A sub-block whose output projection is zero adds zero to the residual stream, whatever its other weights are.
    """

    name: ClassVar[str] = "zeroed"
    title: ClassVar[str] = "dense safetensors in the original shape, dropped parts zeroed"

    def check_settings(self, compressor: Compressor | Drop, space: SpaceSettings) -> None:
        """Accept all settings."""

    def check_profile(self, searched: SearchedModel) -> None:
        """Accept all profiles of all model families."""

    def predicted_bytes(self, searched: SearchedModel, dtype: torch.dtype) -> int:
        return dtype.itemsize * sum(tensor.numel() for tensor in untied_tensors(searched.lm.model).values())

    def original_names(self, searched: SearchedModel) -> dict[str, str]:
        return {name: name for name in untied_tensors(searched.lm.model)}

    def predicted_names(self, searched: SearchedModel) -> list[str]:
        return searched.lm.stored_names(untied_tensors(searched.lm.model))

    def write(self, searched: SearchedModel, folder: Path, *, dtype: torch.dtype) -> None:
        state = _zeroed_state(searched, dtype)
        write_safetensors(searched.lm.stored_state(state), folder)
        write_config_files(model_config(searched.lm, dtype), searched.lm, folder)


def _zeroed_state(searched: SearchedModel, dtype: torch.dtype) -> State:
    """All tensors in `dtype`. The last layers of every dropped sub-block are zero."""
    lm = searched.lm
    state = searched.dense_state(dtype)
    for block, choice in enumerate(searched.choices):
        for subblock in (subblock for subblock in SUBBLOCKS if subblock in choice.dropped):
            last_layers = [lm.layer_name(block, local) for local in lm.subblock_outputs(block, subblock)]
            for name in (f"{layer}.{kind}" for layer in last_layers for kind in ("weight", "bias")):
                if name in state:
                    state[name] = torch.zeros_like(state[name])
    return state
