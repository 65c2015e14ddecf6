"""Writes the configuration of a Nemotron-NAS (DeciLM) checkpoint.

`block_configs[i].attention.no_op` and `.ffn.no_op` say which sub-blocks block i lacks. The width of an MLP is given as
`ffn_mult`: engines use int(2·ffn_mult·hidden/3), rounded up to a multiple of 256.

Source: `nemotron_nas.py` of vLLM 0.32.
"""

from collections.abc import Mapping
from pathlib import Path

import torch

from evopress.export.block_selection import config_of_blocks
from evopress.export.config_files import model_config, write_config_files
from evopress.export.searched import SearchedModel
from evopress.models.subblocks import SUBBLOCKS

MODEL_TYPE = "nemotron-nas"

WIDTH_MULTIPLE = 256
"""Engines round the width of an MLP up to a multiple of this."""

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
"""The file `configuration_decilm.py`, which vLLM needs (with `--trust-remote-code`)."""


def write_nemotron_config(searched: SearchedModel, folder: Path, *, dtype: torch.dtype) -> None:
    """Write all files of the checkpoint except the weights."""
    lm, kept = searched.lm, searched.kept_blocks
    values = config_of_blocks(model_config(lm, dtype), lm.num_blocks, blocks=kept).to_dict()
    values |= {
        "model_type": MODEL_TYPE,
        "architectures": ["DeciLMForCausalLM"],
        "auto_map": {"AutoConfig": "configuration_decilm.DeciLMConfig"},
        "dtype": str(dtype).removeprefix("torch."),
        "block_configs": [_block_config(searched, block) for block in kept],
    }
    (folder / "configuration_decilm.py").write_text(CONFIGURATION)
    write_config_files(values, lm, folder)


def missing_subblocks(block_config: Mapping[str, Mapping[str, object]]) -> set[str]:
    """The sub-blocks that an entry of `block_configs` lacks."""
    keys = zip(SUBBLOCKS, ("attention", "ffn"), strict=True)
    return {subblock for subblock, key in keys if block_config[key]["no_op"]}


def _block_config(searched: SearchedModel, block: int) -> dict[str, dict[str, object]]:
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
    """The factor that engines turn into `width`, a multiple of 256. They round up, so rounding errors do no harm."""
    return 3 * width / (2 * hidden_size)
