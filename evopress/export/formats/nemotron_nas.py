"""Llama models that lack the attention or the MLP of some blocks, in the layout of Nemotron-NAS (DeciLM).

The weights and the norm of a dropped sub-block are not stored. Blocks that lack both sub-blocks are left out. The first
sub-block of the model must be an attention, because the norm of an MLP in vLLM needs the residual stream of an
attention before it.

Source: `nemotron_nas.py` of vLLM 0.32.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import LlamaConfig, PreTrainedModel

from evopress.compressors.base import Compressor
from evopress.compressors.drop import Drop
from evopress.export.base import Format, UnsupportedExportError, check_some_block_is_kept
from evopress.export.formats.nemotron_config import (
    MODEL_TYPE,
    WIDTH_MULTIPLE,
    missing_subblocks,
    write_nemotron_config,
)
from evopress.export.planned import PlannedModel
from evopress.export.registry import register_format
from evopress.export.searched import SearchedModel
from evopress.export.state import load_state, read_safetensors, untied_tensors, write_safetensors
from evopress.models.checkpoints import empty_model, read_config_values
from evopress.models.structure import ModelStructure
from evopress.models.subblocks import no_op
from evopress.space.settings import SpaceSettings

MODULES = {"attention": ("self_attn", "input_layernorm"), "mlp": ("mlp", "post_attention_layernorm")}
"""The modules of a block that are not stored if it lacks this sub-block."""


@register_format
class NemotronNAS(Format):
    """Dropped sub-blocks are left out. vLLM loads the checkpoint, and so does `evopress.load`; transformers cannot."""

    name: ClassVar[str] = "nemotron_nas"
    title: ClassVar[str] = "Nemotron-NAS (DeciLM) safetensors with half blocks left out"
    library = "vllm"
    engines = ("vllm",)
    ships_code: ClassVar[bool] = True
    commands = (
        "vllm serve {folder} --trust-remote-code",
        "python -c \"import evopress; evopress.load('{folder}')\"",
    )

    def hub_commands(self, repository: str) -> list[str]:
        serve, load = self.commands
        download = f"hf download {repository} --local-dir checkpoint"
        return [serve.format(folder=repository), download, load.format(folder="checkpoint")]

    @classmethod
    def recognizes(cls, folder: Path, config: Mapping[str, object]) -> bool:
        return config.get("model_type") == MODEL_TYPE

    def check_settings(self, compressor: Compressor | Drop, space: SpaceSettings) -> None:
        if not isinstance(compressor, Drop) and space.drops == "none":
            raise UnsupportedExportError(
                "export.formats=[nemotron_nas] is for models without some sub-blocks: use compress=drop, space=joint, "
                "or export.formats=[hf]"
            )

    def check_model(self, planned: PlannedModel) -> None:
        _check_family(planned.lm)
        if any(unit.kind == "attention" and 0 in unit.blocks and len(unit.levels) > 1 for unit in planned.space.units):
            raise UnsupportedExportError(
                "export.formats=[nemotron_nas]: the search could drop the attention of block 0 and keep its MLP, which "
                "vLLM cannot run: set space.tie=engine, or use export.formats=[zeroed]"
            )

    def check_profile(self, searched: SearchedModel) -> None:
        check_some_block_is_kept(searched)
        _check_family(searched.lm)
        first = searched.kept_blocks[0]
        if "attention" in searched.choices[first].dropped:
            raise UnsupportedExportError(
                f"export.formats=[nemotron_nas]: block {first} is the first that is kept and has no attention, which "
                f"vLLM cannot run: search with space.tie=engine, or use export.formats=[zeroed]"
            )

    def predicted_bytes(self, searched: SearchedModel, dtype: torch.dtype) -> int:
        sizes = {name: tensor.numel() for name, tensor in untied_tensors(searched.lm.model).items()}
        return dtype.itemsize * sum(sizes[name] for name in self.predicted_names(searched))

    def original_names(self, searched: SearchedModel) -> dict[str, str]:
        return searched.renumbered({name: name for name in self.predicted_names(searched)})

    def predicted_names(self, searched: SearchedModel) -> list[str]:
        absent = _absent_modules(searched)
        return [name for name in super().predicted_names(searched) if not name.startswith(absent)]

    def write(self, searched: SearchedModel, folder: Path, *, dtype: torch.dtype) -> None:
        absent = _absent_modules(searched)
        state = {name: t for name, t in searched.dense_state(dtype).items() if not name.startswith(absent)}
        write_safetensors(searched.renumbered(state), folder)
        write_nemotron_config(searched, folder, dtype=dtype)

    def load(self, folder: Path, dtype: torch.dtype, *, attention: str | None = None) -> PreTrainedModel:
        """A Llama model whose missing sub-blocks add nothing. transformers has no class for this layout."""
        values: dict[str, Any] = read_config_values(folder)
        block_configs = values.pop("block_configs")
        config = LlamaConfig.from_dict({**values, "model_type": "llama", "architectures": ["LlamaForCausalLM"]})
        model = empty_model(config, dtype=dtype, attention=attention)
        absent: list[str] = []
        for index, block_config in enumerate(block_configs):
            for subblock in missing_subblocks(block_config):
                path = f"model.layers.{index}"
                absent += [f"{path}.{module}." for module in MODULES[subblock]]
                module = f"{path}.{MODULES[subblock][0]}"
                model.set_submodule(module, no_op(subblock, model.get_submodule(module), layer_idx=index))
        load_state(model, read_safetensors(folder), absent=tuple(absent))
        return model


def _absent_modules(searched: SearchedModel) -> tuple[str, ...]:
    """Prefixes of the names of all tensors that are not stored."""
    return tuple(
        f"{searched.lm.block_names[block]}.{module}."
        for block, choice in enumerate(searched.choices)
        for subblock in choice.dropped
        for module in MODULES[subblock]
    )


def _check_family(lm: ModelStructure) -> None:
    """Raise UnsupportedExportError for a model that is not like Llama, or has an MLP of an unsupported width."""
    config = lm.model.config
    sliding = " with a sliding window" if getattr(config, "sliding_window", None) else ""
    if config.model_type not in ("llama", "mistral") or sliding:
        raise UnsupportedExportError(
            f"export.formats=[nemotron_nas] holds Llama models, but this is {config.model_type}{sliding}: use "
            "export.formats=[zeroed], or search with compress.granularity=block and use export.formats=[hf]"
        )
    if config.intermediate_size % WIDTH_MULTIPLE:
        raise UnsupportedExportError(
            f"export.formats=[nemotron_nas] holds MLPs whose width is a multiple of {WIDTH_MULTIPLE}, but this one is "
            f"{config.intermediate_size} wide: use export.formats=[zeroed], or search with compress.granularity=block "
            "and use export.formats=[hf]"
        )
