"""Reads a model from an untrusted folder. No code in it is run, and no pickle is opened.

Without these arguments and checks, transformers asks on the terminal whether it may run code, opens pickled weights,
and reads any file that an index names.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from evopress.models.file_checks import check_attention, check_files
from evopress.models.pretrained import read_model_and_unknown
from evopress.runtime.json_files import read_json

SETTING = "the argument attention to sdpa"
"""How a user of `evopress.load` chooses another attention implementation, for errors."""


def read_config_values(folder: Path) -> dict[str, object]:
    """The content of config.json. Raises ValueError if there is none."""
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError("it has no config.json")
    values = read_json(path)
    if not isinstance(values, dict):
        raise ValueError("config.json is not an object")
    return values


def dtype_in(values: Mapping[str, object]) -> torch.dtype:
    """The type of the weights that a config.json names, by default float32. Raises ValueError for any other word."""
    dtype = getattr(torch, str(values.get("dtype", "float32")), None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"its configuration names the type {values.get('dtype')!r}, which is no type of weights")
    return dtype


def read_folder_config(folder: Path) -> PretrainedConfig:
    """The configuration in a folder. Raises ValueError if it needs its own code."""
    return AutoConfig.from_pretrained(folder, trust_remote_code=False)


def read_folder(
    folder: Path, config: PretrainedConfig, *, dtype: torch.dtype, attention: str | None, gguf_file: str | None = None
) -> PreTrainedModel:
    """Read the model in a folder, which must have this configuration.

    Raises ValueError for files that are outside the folder, are pickled or run code, and for missing or unknown
    weights.
    """
    check_files(folder, config, attention=attention, setting=SETTING)
    model, unknown = read_model_and_unknown(
        str(folder),
        config=config,
        dtype=dtype,
        attn_implementation=attention,
        trust_remote_code=False,
        use_safetensors=None if gguf_file else True,
        gguf_file=gguf_file,
    )
    if unknown:
        raise ValueError(
            f"its configuration describes a model without {len(unknown)} of its weights, for example {unknown[0]}"
        )
    return model


def empty_model(config: PretrainedConfig, *, dtype: torch.dtype, attention: str | None) -> PreTrainedModel:
    """A model with random weights, for the caller to fill. Raises ValueError if it would run code from the hub."""
    if attention is None:
        check_attention(config, SETTING)
    return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention, trust_remote_code=False)
