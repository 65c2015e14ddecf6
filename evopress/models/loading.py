"""Loads a model from the hub, a local folder, a GGUF file or an installed package, and verifies it."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from evopress.models.experts import unpack_experts
from evopress.models.families import Family
from evopress.models.family_match import resolve_family
from evopress.models.file_checks import check_files, check_is_dense
from evopress.models.gguf import converted_folder, existing_conversion, without_quantization
from evopress.models.language_model import LanguageModel
from evopress.models.location import ModelLocation, locate
from evopress.models.origin import Origin, find_origin, origin_in_memory
from evopress.models.pretrained import explain_errors, options_of, read_config, read_model, read_tokenizer
from evopress.models.source import ModelSource, device_of, dtype_of
from evopress.models.structure import ModelStructure
from evopress.models.verification import verify


def load_model(source: ModelSource, cache: Path) -> LanguageModel:
    """Load the dense model: frozen, in evaluation mode and verified.

    A local GGUF file is converted once, to safetensors in `cache`. Raises ValueError for a model that cannot be found,
    that is already quantised, that has only pickled weights, or whose parts are unknown. Unknown parts are noticed
    before the weights are read.
    """
    published = location = locate(source)
    if location.gguf_file and location.is_local:
        location = ModelLocation(str(converted_folder(source, Path(location.path) / location.gguf_file, cache)))
    device = device_of(source)
    with explain_errors(source):
        config = read_config(source, location)
        _check_files(source, location, config)
    structure_of(source, config)
    tokenizer = read_tokenizer(source, location)
    with explain_errors(source):
        origin = find_origin(source, published)
        model = read_model(
            location.path,
            dtype=dtype_of(source, device),
            attn_implementation=None if source.attention == "auto" else source.attention,
            use_safetensors=None if location.gguf_file else True,
            **options_of(source, location),
        )
    if location.gguf_file:
        model = without_quantization(model)
    lm = _language_model(model, tokenizer, name=source.name, family=source.family, origin=origin)
    lm.to(device, offload=source.offload)
    verify(lm)
    return lm


def load_structure(source: ModelSource, cache: Path) -> ModelStructure:
    """The model on the `meta` device, from its configuration alone. It has names, shapes and types, but no weights.

    A local GGUF file is not converted. Raises ValueError for a model that cannot be found, that would run code, that is
    already quantised, or whose parts are unknown.
    """
    location = _location_to_read(source, cache)
    with explain_errors(source):
        config = read_config(source, location)
        _check_files(source, location, config)
    return structure_of(source, config)


def load_tokenizer(source: ModelSource, cache: Path) -> PreTrainedTokenizerBase:
    """The tokenizer that the model will have. Raises ValueError if there is none."""
    return read_tokenizer(source, _location_to_read(source, cache))


def _location_to_read(source: ModelSource, cache: Path) -> ModelLocation:
    """Where the model is. If a GGUF file is already converted, this is its converted form, which is faster to read."""
    location = locate(source)
    if not (location.gguf_file and location.is_local):
        return location
    folder = existing_conversion(source, Path(location.path) / location.gguf_file, cache)
    return ModelLocation(str(folder)) if folder else location


def _check_files(source: ModelSource, location: ModelLocation, config: PretrainedConfig) -> None:
    is_trusted = source.trust_remote_code or source.attention != "auto"
    check_files(
        location.path, config, attention=source.attention if is_trusted else None, setting="model.attention to sdpa"
    )


def structure_of(source: ModelSource, config: PretrainedConfig) -> ModelStructure:
    """The model on the `meta` device, from a configuration that was already read.

    Raises ValueError for a model that is already quantised, or whose parts are unknown.
    """
    check_is_dense(config, f"model.path {source.path!r}")
    with explain_errors(source), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config,
            dtype=dtype_of(source, device_of(source)),
            trust_remote_code=source.trust_remote_code,
            attn_implementation="eager",  # it never runs, and must not load a kernel that the configuration names
        )
    family = _unpacked_family(model, source.family)
    return ModelStructure(model=model, family=family, name=source.name)


def wrap_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, family: Family | None = None
) -> LanguageModel:
    """Turn a loaded transformers model into a `LanguageModel`. This freezes it and unpacks its experts in place.

    Raises ValueError for a model that is quantised, whose parts are unknown, or that fails verification.
    """
    check_is_dense(model.config, name)
    lm = _language_model(model, tokenizer, name=name, family=family, origin=origin_in_memory(model))
    verify(lm)
    return lm


def _language_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, name: str, family: Family | None, origin: Origin
) -> LanguageModel:
    model.eval().requires_grad_(False)
    family = _unpacked_family(model, family)
    return LanguageModel(model=model, tokenizer=tokenizer, family=family, name=name, origin=origin)


def _unpacked_family(model: PreTrainedModel, family: Family | None) -> Family:
    """Unpack the model's experts in place, and return the family whose paths then exist in it."""
    unpack_experts(model, model.config.model_type)
    return resolve_family(model, model.config.model_type, family)
