"""Llama models that lack the attention or the MLP of some blocks, in the layout of Nemotron-NAS (DeciLM).

`block_configs[i].attention.no_op` and `.ffn.no_op` say what block i lacks; its norm and weights are not stored. Blocks
that lack both are taken out. The width of an MLP is given as `ffn_mult`: engines use int(2·ffn_mult·hidden/3), rounded
up to a multiple of 256.

Source: `nemotron_nas.py` of vLLM 0.32, which calls a block's post-attention norm with the residual stream of the
attention before it; so the first sub-block that is kept has to be an attention.
"""

import json
from pathlib import Path
from typing import ClassVar

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from evopress.compressors.base import Compressor
from evopress.compressors.drop import Drop
from evopress.export.base import (
    Format,
    Refused,
    Searched,
    config_of,
    fill,
    own_tensors,
    read_safetensors,
    with_blocks,
    write_config,
    write_safetensors,
)
from evopress.export.hf import refuse_no_blocks
from evopress.models.subblocks import SUBBLOCKS, no_op
from evopress.space.settings import SpaceSettings

MODULES = {"attention": ("self_attn", "input_layernorm"), "mlp": ("mlp", "post_attention_layernorm")}
"""What is not stored of a block that lacks this half."""

WIDTH_MULTIPLE = 256

CONFIGURATION = '''"""Configuration of a Llama model some of whose blocks lack their attention or their MLP."""

from types import SimpleNamespace

from transformers import LlamaConfig


class DeciLMConfig(LlamaConfig):
    """Llama's configuration with a list `block_configs`, whose entries are read by attribute."""

    model_type = "nemotron-nas"

    def __init__(self, block_configs=None, **kwargs):
        super().__init__(**kwargs)
        self.block_configs = [
            SimpleNamespace(**{part: SimpleNamespace(**values) for part, values in block.items()})
            for block in block_configs or []
        ]

    def to_dict(self):
        values = super().to_dict()
        values["block_configs"] = [
            {part: vars(value) for part, value in vars(block).items()} for block in self.block_configs
        ]
        return values
'''
"""`configuration_decilm.py`, which vLLM asks for (`--trust-remote-code`)."""


class NemotronNAS(Format):
    """Half blocks are left out. vLLM runs it; transformers needs `evopress.load`."""

    name: ClassVar[str] = "nemotron_nas"
    title: ClassVar[str] = "Nemotron-NAS (DeciLM) safetensors with half blocks left out"
    commands = (
        "vllm serve {folder} --trust-remote-code",
        "python -c \"import evopress; evopress.load('{folder}')\"",
    )

    def refuse_settings(self, compressor: Compressor | Drop, space: SpaceSettings) -> None:
        if not isinstance(compressor, Drop) and space.drops == "none":
            raise Refused(
                "export.formats=[nemotron_nas] is for models without some sub-blocks: use compress=drop, space=joint, "
                "or export.formats=[hf]"
            )

    def refuse(self, searched: Searched) -> None:
        refuse_no_blocks(searched)
        _refuse_model(searched)
        first = searched.kept_blocks[0]
        if "attention" in searched.choices[first].dropped:
            raise Refused(
                f"export.formats=[nemotron_nas]: block {first} is the first that is kept and has no attention, which "
                f"vLLM cannot run: search with space.tie=engine, or use export.formats=[zeroed]"
            )

    def predicted_bytes(self, searched: Searched, dtype: torch.dtype) -> int:
        sizes = {name: tensor.numel() for name, tensor in own_tensors(searched.lm.model).items()}
        return dtype.itemsize * sum(sizes[name] for name in self.predicted_names(searched))

    def stored_names(self, searched: Searched) -> dict[str, str]:
        return searched.renumbered({name: name for name in self.predicted_names(searched)})

    def predicted_names(self, searched: Searched) -> list[str]:
        absent = tuple(
            f"{searched.lm.block_names[block]}.{module}."
            for block, choice in enumerate(searched.choices)
            for part in choice.dropped
            for module in MODULES[part]
        )
        return [name for name in super().predicted_names(searched) if not name.startswith(absent)]

    def write(self, searched: Searched, dtype: torch.dtype, folder: Path) -> None:
        lm, kept = searched.lm, searched.kept_blocks
        absent = tuple(
            f"{lm.block_names[block]}.{module}."
            for block, part in searched.half_dropped.items()
            for module in MODULES[part]
        )
        state = {name: t for name, t in searched.dense_state(dtype).items() if not name.startswith(absent)}
        write_safetensors(searched.renumbered(state), folder)
        values = with_blocks(config_of(lm, dtype), lm.num_blocks, kept).to_dict()
        values |= {
            "model_type": "nemotron-nas",
            "architectures": ["DeciLMForCausalLM"],
            "auto_map": {"AutoConfig": "configuration_decilm.DeciLMConfig"},
            "dtype": str(dtype).removeprefix("torch."),
            "block_configs": [_block_config(searched, block) for block in kept],
        }
        (folder / "configuration_decilm.py").write_text(CONFIGURATION)
        write_config(values, lm, folder)

    def load(self, folder: Path, dtype: torch.dtype, attention: str | None = None) -> PreTrainedModel:
        """A Llama model whose missing halves add nothing; transformers has no class of its own for this layout."""
        values = json.loads((folder / "config.json").read_text())
        blocks = values.pop("block_configs")
        config = LlamaConfig.from_dict({**values, "model_type": "llama", "architectures": ["LlamaForCausalLM"]})
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
        absent: list[str] = []
        for index, block in enumerate(blocks):
            missing = {part for part, key in zip(SUBBLOCKS, ("attention", "ffn"), strict=True) if block[key]["no_op"]}
            absent += [f"model.layers.{index}.{module}." for part in missing for module in MODULES[part]]
            for part in missing:
                path = f"model.layers.{index}.{MODULES[part][0]}"
                model.set_submodule(path, no_op(part, layer_idx=index))
        fill(model, read_safetensors(folder), tuple(absent))
        return model


def _refuse_model(searched: Searched) -> None:
    config = searched.lm.model.config
    sliding = " with a sliding window" if getattr(config, "sliding_window", None) else ""
    if config.model_type not in ("llama", "mistral") or sliding:
        raise Refused(
            f"export.formats=[nemotron_nas] holds Llama models, and this is {config.model_type}{sliding}: use "
            "export.formats=[zeroed], or search with compress.granularity=block and use export.formats=[hf]"
        )
    if config.intermediate_size % WIDTH_MULTIPLE:
        raise Refused(
            f"export.formats=[nemotron_nas] holds MLPs whose width is a multiple of {WIDTH_MULTIPLE}, and this one is "
            f"{config.intermediate_size} wide: use export.formats=[zeroed], or search with compress.granularity=block "
            "and use export.formats=[hf]"
        )


def _block_config(searched: Searched, block: int) -> dict[str, dict[str, object]]:
    config, dropped = searched.lm.model.config, searched.choices[block].dropped
    attention: dict[str, object] = {
        "no_op": "attention" in dropped,
        "replace_with_linear": False,
        "n_heads_in_group": config.num_attention_heads // config.num_key_value_heads,
    }
    ffn: dict[str, object] = {
        "no_op": "mlp" in dropped,
        "replace_with_linear": False,
        "ffn_mult": ffn_mult(config.intermediate_size, config.hidden_size),
    }
    return {"attention": attention, "ffn": ffn}


def ffn_mult(width: int, hidden_size: int) -> float:
    """The factor that engines turn into `width`, a multiple of 256; a float error is rounded up with the rest."""
    return 3 * width / (2 * hidden_size)
