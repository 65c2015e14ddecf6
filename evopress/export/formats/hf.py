"""Plain safetensors in the layout of transformers, which many engines load too."""

from pathlib import Path
from typing import ClassVar

import torch
from transformers import PreTrainedModel

from evopress.compressors.base import Compressor
from evopress.compressors.drop import Drop
from evopress.export.base import Format, UnsupportedExportError, check_code, check_halves, check_some_block_is_kept
from evopress.export.config_files import config_without_dropped_blocks, write_config_files
from evopress.export.planned import PlannedModel
from evopress.export.registry import register_format
from evopress.export.searched import SearchedModel
from evopress.export.state import untied_tensors, write_safetensors
from evopress.models.checkpoints import read_folder, read_folder_config
from evopress.space.settings import SpaceSettings

FROM_PRETRAINED = (
    "python -c \"from transformers import AutoModelForCausalLM; AutoModelForCausalLM.from_pretrained('{folder}')\""
)
"""A command that loads a checkpoint with transformers alone."""


@register_format
class DenseSafetensors(Format):
    """Decoded weights. Dropped blocks are left out and the others renumbered. Sparse layers are stored with zeros."""

    name: ClassVar[str] = "hf"
    title: ClassVar[str] = "dense safetensors"
    commands = (FROM_PRETRAINED, "vllm serve {folder}")
    engines = ("vllm",)

    def check_settings(self, compressor: Compressor | Drop, space: SpaceSettings) -> None:
        """Accept levels of every kind, and drops of whole blocks."""
        check_halves(self, compressor, space)

    def check_model(self, planned: PlannedModel) -> None:
        check_code(self, planned.lm)

    def check_profile(self, searched: SearchedModel) -> None:
        check_some_block_is_kept(searched)
        if searched.half_dropped:
            block, subblock = next(iter(searched.half_dropped.items()))
            raise UnsupportedExportError(
                f"export.formats=[hf] needs whole blocks, but the profile drops only the {subblock} of block {block}: "
                "use export.formats=[nemotron_nas] or [zeroed], or search with compress.granularity=block"
            )

    def predicted_bytes(self, searched: SearchedModel, dtype: torch.dtype) -> int:
        num_parameters = sum(tensor.numel() for tensor in untied_tensors(searched.lm.model).values())
        dropped = (searched.lm.blocks[block] for block in _dropped_blocks(searched))
        return dtype.itemsize * (num_parameters - sum(p.numel() for block in dropped for p in block.parameters()))

    def predicted_names(self, searched: SearchedModel) -> list[str]:
        dropped = tuple(f"{searched.lm.block_names[block]}." for block in _dropped_blocks(searched))
        names = (name for name in super().predicted_names(searched) if not name.startswith(dropped))
        return searched.lm.stored_names(names)

    def write(self, searched: SearchedModel, folder: Path, *, dtype: torch.dtype) -> None:
        state = searched.renumbered(searched.dense_state(dtype))
        write_safetensors(searched.lm.stored_state(state), folder)
        write_config_files(config_without_dropped_blocks(searched, dtype), searched.lm, folder)

    def load(self, folder: Path, dtype: torch.dtype, *, attention: str | None = None) -> PreTrainedModel:
        return read_folder(folder, read_folder_config(folder), dtype=dtype, attention=attention)


def _dropped_blocks(searched: SearchedModel) -> set[int]:
    """Blocks that are dropped completely."""
    return set(range(searched.lm.num_blocks)) - set(searched.kept_blocks)
