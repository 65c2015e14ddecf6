"""Reads a model from a folder that anybody may have written: nothing in it is run, and no pickle is opened.

Without these arguments and checks, transformers asks on the terminal whether code may be run, opens pickled weights,
and reads whatever files an index names.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from evopress.models.file_checks import check_attention, check_files
from evopress.models.pretrained import read_model_and_rest
from evopress.runtime.json_files import read_json

SETTING = "the argument attention to sdpa"
"""How the user of `evopress.load` chooses an attention implementation."""


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
    """The type of the weights that a config.json names; float32 if it names none. Raises ValueError for other words."""
    dtype = getattr(torch, str(values.get("dtype", "float32")), None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"its configuration names the type {values.get('dtype')!r}, which is none of weights")
    return dtype


def read_folder_config(folder: Path) -> PretrainedConfig:
    """The configuration in a folder. Raises ValueError if it needs code of its own."""
    return AutoConfig.from_pretrained(folder, trust_remote_code=False)


def read_folder(
    folder: Path, config: PretrainedConfig, *, dtype: torch.dtype, attention: str | None, gguf_file: str | None = None
) -> PreTrainedModel:
    """The model in a folder, which must have this configuration.

    Raises ValueError for files that lead out of the folder, are pickled or run code, and for weights that are missing
    or that the model does not have.
    """
    check_files(folder, config, attention=attention, setting=SETTING)
    model, rest = read_model_and_rest(
        str(folder),
        config=config,
        dtype=dtype,
        attn_implementation=attention,
        trust_remote_code=False,
        use_safetensors=None if gguf_file else True,
        gguf_file=gguf_file,
    )
    if rest:
        raise ValueError(f"its configuration describes a model without {len(rest)} of its weights, one is {rest[0]}")
    return model


def empty_model(config: PretrainedConfig, *, dtype: torch.dtype, attention: str | None) -> PreTrainedModel:
    """A model with random weights, to be filled by the caller. Raises ValueError if it would run code from the hub."""
    if attention is None:
        check_attention(config, SETTING)
    return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention, trust_remote_code=False)
