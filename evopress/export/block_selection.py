"""Selects the tensors and the configuration of a model with only some of its blocks."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from transformers import PretrainedConfig

from evopress.models.structure import ModelStructure

T = TypeVar("T")

NOT_PER_BLOCK = ("architectures", "eos_token_id", "bos_token_id", "pad_token_id")
"""Lists of a configuration that do not have an entry per block, even if their length is the number of blocks."""

BLOCK_NUMBERS = ("mlp_only_layers", "moe_layers")
"""Lists of the numbers of some blocks: those without experts (Qwen), and those with experts (Llama 4)."""


def tensors_of_blocks(by_name: Mapping[str, T], lm: ModelStructure, *, blocks: Sequence[int]) -> dict[str, T]:
    """The entries outside all blocks, and those in `blocks`, whose names number these blocks from 0 again."""
    new_prefixes = {f"{lm.block_names[old]}.": f"{lm.family.blocks}.{new}." for new, old in enumerate(blocks)}
    all_blocks = f"{lm.family.blocks}."
    selected: dict[str, T] = {}
    for name, value in by_name.items():
        if not name.startswith(all_blocks):
            selected[name] = value
            continue
        old_prefix = f"{all_blocks}{name.removeprefix(all_blocks).partition('.')[0]}."
        if old_prefix in new_prefixes:
            selected[new_prefixes[old_prefix] + name.removeprefix(old_prefix)] = value
    return selected


def config_of_blocks(config: PretrainedConfig, num_blocks: int, *, blocks: Sequence[int]) -> PretrainedConfig:
    """The configuration of a model that keeps only these of its `num_blocks` blocks.

    Lists with an entry per block keep only the entries of these blocks. Lists of block numbers get the new numbers. If
    the blocks belong to a text model inside the model, its part of the configuration is changed.
    """
    text = config.get_text_config()
    if text is not config:
        key = next(key for key, value in vars(config).items() if value is text)
        outer = copy.deepcopy(config)
        setattr(outer, key, config_of_blocks(text, num_blocks, blocks=blocks))
        return outer
    values = {key: value for key, value in config.to_dict().items() if key not in NOT_PER_BLOCK}
    for key, value in values.items():
        if key not in BLOCK_NUMBERS and isinstance(value, list | tuple) and len(value) == num_blocks:
            values[key] = [value[block] for block in blocks]
    values.update(_settings_of_experts(values, blocks))
    values["num_hidden_layers"] = len(blocks)
    selected = type(config).from_dict(values)
    for key in NOT_PER_BLOCK:
        if hasattr(config, key):
            setattr(selected, key, getattr(config, key))
    return selected


def _settings_of_experts(values: Mapping[str, Any], blocks: Sequence[int]) -> dict[str, object]:
    """The settings that say which blocks have experts, for a model that keeps only these blocks."""
    numbers = {key: set(values[key] or ()) for key in BLOCK_NUMBERS if key in values}
    changed: dict[str, object] = {}
    if "decoder_sparse_step" in values:
        step = values["decoder_sparse_step"]
        numbers["mlp_only_layers"] |= {block for block in blocks if (block + 1) % step}
        changed["decoder_sparse_step"] = 1
    for key, listed in numbers.items():
        changed[key] = [new for new, old in enumerate(blocks) if old in listed]
    if values.get("first_k_dense_replace"):
        changed["first_k_dense_replace"] = sum(block < values["first_k_dense_replace"] for block in blocks)
    return changed
