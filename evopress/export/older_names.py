"""Adds the keys of transformers 4 to config.json and tokenizer_config.json, next to those of transformers 5.

Many tools load checkpoints through transformers 4, or read its keys themselves. If transformers 4 does not find a key,
it uses a default, without an error.
"""

from collections.abc import Mapping

from transformers import CONFIG_MAPPING, PreTrainedTokenizerBase

TESTED_VERSION = "4.57.3"
"""The release of transformers 4 in which exports of all families were compared with the searched models."""

ROPE_PER_LAYER_TYPE = ("gemma3_text", "gemma3n_text", "olmo3")
"""Model types for which both releases support different rotary embeddings for full and sliding attention."""

ROPE_WITH_THREE_KEYS = ("phi3",)
"""Model types for which transformers 4 accepts scaled rotary embeddings only with exactly three keys."""

GENERIC_TOKENIZER = "PreTrainedTokenizerFast"
"""The class name, in both releases, of a tokenizer that is fully described by tokenizer.json."""

STANDARD_TOKENS = tuple(PreTrainedTokenizerBase.SPECIAL_TOKENS_ATTRIBUTES)
"""Special tokens that every tokenizer can have."""

Values = Mapping[str, object]


def with_older_names(config: Values) -> dict[str, object]:
    """The content of a config.json with the keys of both releases. This includes models inside the model."""
    both = {
        key: with_older_names(value) if isinstance(value, dict) and "model_type" in value else value
        for key, value in config.items()
    }
    older = {**_renamed(config), **_older_rope(config)}
    if config.get("dtype") is not None:
        older["torch_dtype"] = config["dtype"]
    return {**older, **both}


def _renamed(config: Values) -> dict[str, object]:
    """The values whose key transformers 5 changed, under their older key. Transformers 5 accepts both keys."""
    if config.get("model_type") not in CONFIG_MAPPING:
        return {}
    new_name_of = CONFIG_MAPPING[str(config["model_type"])].attribute_map
    return {older: config[newer] for older, newer in new_name_of.items() if newer in config}


def _older_rope(config: Values) -> dict[str, object]:
    """The keys for rotary embeddings."""
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict):
        return {}
    if "rope_theta" in rope:
        return _older_rope_of_all_layers(rope, has_three_keys=config.get("model_type") in ROPE_WITH_THREE_KEYS)
    if config.get("model_type") not in ROPE_PER_LAYER_TYPE:
        return {}
    local = {"rope_local_base_freq": rope["sliding_attention"]["rope_theta"]}
    return {**_older_rope_of_all_layers(rope["full_attention"], has_three_keys=False), **local}


def _older_rope_of_all_layers(rope: Values, *, has_three_keys: bool) -> dict[str, object]:
    older = {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope}
    scaling = {key: value for key, value in rope.items() if key not in older}
    if scaling.keys() <= {"rope_type", "type"} and scaling.get("rope_type", "default") == "default":
        return {**older, "rope_scaling": None}
    if has_three_keys:
        scaling["type"] = scaling.pop("rope_type")
        scaling.pop("original_max_position_embeddings", None)  # both releases have a separate key for it
    return {**older, "rope_scaling": scaling}


def tokenizer_config_for_both(config: Values) -> dict[str, object]:
    """The content of a tokenizer_config.json in a form that both releases read in the same way.

    A file that transformers 4 wrote is not changed. Transformers 4 has no class TokenizersBackend. Its other classes
    build the tokenizer again, and may add or omit a BOS token, while transformers 5 takes everything from
    tokenizer.json. Transformers 4 also needs the names of additional special tokens in `extra_special_tokens`, and
    tokens without names in `additional_special_tokens`.
    """
    if config.get("backend") != "tokenizers" and config.get("tokenizer_class") != "TokenizersBackend":
        return dict(config)
    both = {**config, "tokenizer_class": GENERIC_TOKENIZER}
    unnamed = both.pop("extra_special_tokens", None)
    named = {key: token for key, token in both.items() if key.endswith("_token") and isinstance(token, str)}
    named = {key: token for key, token in named.items() if key not in STANDARD_TOKENS}
    if isinstance(unnamed, list) and unnamed:
        both["additional_special_tokens"] = unnamed
    for more in (unnamed, both.pop("model_specific_special_tokens", None)):
        named |= more if isinstance(more, dict) else {}
    return {**both, "extra_special_tokens": named} if named else both
