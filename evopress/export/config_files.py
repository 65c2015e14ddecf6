"""Writes the configuration of a checkpoint, and the other files that every checkpoint has besides its weights."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import PretrainedConfig

from evopress.export.block_selection import config_of_blocks
from evopress.export.input_files import CODE, write_processor, write_tokenizer
from evopress.export.older_names import with_older_names
from evopress.export.searched import SearchedModel
from evopress.models.language_model import LanguageModel
from evopress.runtime.json_files import read_json


def model_config(lm: LanguageModel, dtype: torch.dtype) -> PretrainedConfig:
    """A copy of the model's configuration, for a checkpoint in `dtype`."""
    config = copy.deepcopy(lm.model.config)
    config.architectures = [type(lm.model).__name__]
    config.dtype = dtype
    return config


def config_without_dropped_blocks(searched: SearchedModel, dtype: torch.dtype) -> PretrainedConfig:
    """The configuration of a checkpoint that leaves out dropped blocks."""
    config, kept, num_blocks = model_config(searched.lm, dtype), searched.kept_blocks, searched.lm.num_blocks
    return config if len(kept) == num_blocks else config_of_blocks(config, num_blocks, blocks=kept)


def write_config_files(config: PretrainedConfig | Mapping[str, object], lm: LanguageModel, folder: Path) -> None:
    """Write the configuration, the generation configuration, the tokenizer, the processor and the licences.

    Transformers 4 and 5 read the same values from the configuration and the tokenizer.
    """
    if isinstance(config, PretrainedConfig):
        config.save_pretrained(folder)
        config = {key: value for key, value in read_json(folder / "config.json").items() if key != CODE}
    (folder / "config.json").write_text(json.dumps(with_older_names(config), indent=2, sort_keys=True) + "\n")
    if lm.model.generation_config is not None:
        lm.model.generation_config.to_json_file(folder / "generation_config.json")
    write_tokenizer(lm, folder)
    write_processor(lm, folder)
