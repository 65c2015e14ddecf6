"""The header of a model card, which model hubs read.

Source: "Model Cards" and the list of its keys in the documentation of the Hugging Face hub.
"""

import logging
from collections.abc import Mapping

import yaml
from huggingface_hub import metadata_load

from evopress.export.base import Format
from evopress.export.searched import SearchedModel
from evopress.models.origin import Origin

log = logging.getLogger(__name__)

INHERITED = ("license", "license_name", "license_link", "language")
"""Keys of the base model's card that are also true of a compressed model."""

UNKNOWN_BASE = "# base_model: ORG/NAME    the hub id of the model that this one was made from\n"
"""A line in place of the base model, if its hub id is not known."""


def card_header(checkpoint_format: Format, searched: SearchedModel, *, compressor: str | None) -> str:
    """YAML between two lines of dashes. `compressor` is the name of the compressor, for the tags."""
    origin = searched.lm.origin
    is_quantized = any(kind.is_quantized for kind in searched.weight_kinds)
    base = {
        "base_model": origin.hub_id,
        # the hub knows adapter, merge, quantized and finetune; finetune, its default, is the closest to pruning
        "base_model_relation": "quantized" if is_quantized else "finetune",
    }
    has_images = searched.lm.text_config is not searched.lm.model.config
    values = {
        **(base if origin.hub_id else {}),
        **_inherited(origin),
        "library_name": checkpoint_format.library,
        "pipeline_tag": "image-text-to-text" if has_images else "text-generation",
        "tags": ["evopress", *checkpoint_format.tags, *([compressor] if compressor else [])],
    }
    note = "" if origin.hub_id else UNKNOWN_BASE
    return f"---\n{note}{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}---"


def _inherited(origin: Origin) -> Mapping[str, object]:
    """The values in the base model's card that are also true of the compressed model."""
    if origin.card is None:
        return {}
    try:
        values = metadata_load(origin.card) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        log.warning("the header of %s cannot be read, so model cards name no licence: %s", origin.card, error)
        return {}
    return {key: values[key] for key in INHERITED if _is_text(values.get(key))}


def _is_text(value: object) -> bool:
    """Whether a value is text, or a list of texts."""
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, str) for item in value))
