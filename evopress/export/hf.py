"""Plain safetensors that transformers and every engine built on its layout load."""

from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from evopress.compressors.base import Compressor
from evopress.compressors.drop import Drop
from evopress.export.base import (
    FROM_PRETRAINED,
    Format,
    Refused,
    Searched,
    config_of,
    own_tensors,
    refuse_halves,
    stored_config,
    write_config,
    write_safetensors,
)
from evopress.models.subblocks import SUBBLOCKS
from evopress.space.settings import SpaceSettings


class HF(Format):
    """Dense weights; dropped blocks are left out and the others renumbered, zeros of sparse layers are plain zeros."""

    name: ClassVar[str] = "hf"
    title: ClassVar[str] = "dense safetensors"
    commands = (FROM_PRETRAINED, "vllm serve {folder}")

    def refuse_settings(self, compressor: Compressor | Drop, space: SpaceSettings) -> None:
        """Any profile of layers, and most of drops: which one is known after the search only."""
        refuse_halves(self, space)

    def refuse(self, searched: Searched) -> None:
        refuse_no_blocks(searched)
        if searched.half_dropped:
            block, part = next(iter(searched.half_dropped.items()))
            raise Refused(
                f"export.formats=[hf] needs whole blocks, and the profile drops the {part} of block {block} only: "
                "use export.formats=[nemotron_nas] or [zeroed], or search with compress.granularity=block"
            )

    def predicted_bytes(self, searched: Searched, dtype: torch.dtype) -> int:
        return dtype.itemsize * (_num_parameters(searched) - _num_in_blocks(searched, _whole_dropped(searched)))

    def predicted_names(self, searched: Searched) -> list[str]:
        absent = tuple(f"{searched.lm.block_names[block]}." for block in _whole_dropped(searched))
        return [name for name in super().predicted_names(searched) if not name.startswith(absent)]

    def write(self, searched: Searched, dtype: torch.dtype, folder: Path) -> None:
        write_safetensors(searched.renumbered(searched.dense_state(dtype)), folder)
        write_config(stored_config(searched, dtype), searched.lm, folder)

    def load(self, folder: Path, dtype: torch.dtype, attention: str | None = None) -> PreTrainedModel:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=attention)


def refuse_no_blocks(searched: Searched) -> None:
    """Raises Refused for a profile that drops every block."""
    if not searched.kept_blocks:
        raise Refused("the profile drops every block, which no engine runs: lower budget.target")


def _num_parameters(searched: Searched) -> int:
    return sum(tensor.numel() for tensor in own_tensors(searched.lm.model).values())


def _whole_dropped(searched: Searched) -> set[int]:
    return set(range(searched.lm.num_blocks)) - set(searched.kept_blocks)


def _num_in_blocks(searched: Searched, blocks: set[int]) -> int:
    return sum(parameter.numel() for block in blocks for parameter in searched.lm.blocks[block].parameters())


class Zeroed(HF):
    """The model in its original shape: what is dropped stays, and its last layer is zero. Exact, and saves nothing.

    Source: with its output projection zero, a sub-block adds zero to the residual stream, whatever its other weights.
    """

    name: ClassVar[str] = "zeroed"
    title: ClassVar[str] = "dense safetensors in the original shape, dropped parts zeroed"

    def refuse_settings(self, compressor: Compressor | Drop, space: SpaceSettings) -> None:
        """Fits every profile of every family."""

    def refuse(self, searched: Searched) -> None:
        """The same."""

    def predicted_bytes(self, searched: Searched, dtype: torch.dtype) -> int:
        return dtype.itemsize * _num_parameters(searched)

    def stored_names(self, searched: Searched) -> dict[str, str]:
        return {name: name for name in self.predicted_names(searched)}

    def predicted_names(self, searched: Searched) -> list[str]:
        return list(own_tensors(searched.lm.model))

    def write(self, searched: Searched, dtype: torch.dtype, folder: Path) -> None:
        write_safetensors(zeroed_state(searched, dtype), folder)
        write_config(config_of(searched.lm, dtype), searched.lm, folder)


def zeroed_state(searched: Searched, dtype: torch.dtype) -> dict[str, Tensor]:
    """All tensors in `dtype`, those of the last layer of every dropped sub-block zero."""
    lm = searched.lm
    state = searched.dense_state(dtype)
    for block, choice in enumerate(searched.choices):
        for part in (part for part in SUBBLOCKS if part in choice.dropped):
            lasts = [lm.layer_name(block, local) for local in lm.subblock_outputs(part)]
            for name in (f"{last}.{kind}" for last in lasts for kind in ("weight", "bias")):
                if name in state:
                    state[name] = torch.zeros_like(state[name])
    return state
