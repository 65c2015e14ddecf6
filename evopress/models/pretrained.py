"""Reads configuration, weights and tokenizer through transformers, and turns its errors into ones that name a key."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from evopress.models.location import ModelLocation
from evopress.models.source import ModelSource


def options_of(source: ModelSource, location: ModelLocation) -> dict[str, object]:
    """The common arguments of `from_pretrained` for the configuration, the weights and the tokenizer."""
    options: dict[str, object] = {"revision": source.revision, "trust_remote_code": source.trust_remote_code}
    return options | ({"gguf_file": location.gguf_file} if location.gguf_file else {})


def read_config(source: ModelSource, location: ModelLocation) -> PretrainedConfig:
    return AutoConfig.from_pretrained(location.path, **options_of(source, location))


def read_tokenizer(source: ModelSource, location: ModelLocation) -> PreTrainedTokenizerBase:
    """The tokenizer of `model.tokenizer`, or else of the model. Raises ValueError, naming the key, if there is none."""
    if source.tokenizer is None:
        path, options = location.path, options_of(source, location)
    else:
        path, options = source.tokenizer, {"trust_remote_code": source.trust_remote_code}
    try:
        with quiet_transformers():
            return AutoTokenizer.from_pretrained(path, **options)
    except Exception as error:  # the libraries raise errors of many types for missing and damaged files
        setting = f"model.path {source.path!r}" if source.tokenizer is None else f"model.tokenizer {source.tokenizer!r}"
        if _needs_code(error):
            raise ValueError(_code_refusal(setting)) from error
        raise ValueError(
            f"{setting} has no tokenizer that can be loaded (tokenizer.json, tokenizer.model or the like): set "
            f"model.tokenizer to the folder or hub id of a model that has the same tokenizer. The error was: {error}"
        ) from error


def read_model(path: str, **options: object) -> PreTrainedModel:
    """The model with all its weights. Raises ValueError if weights are missing; transformers would make them random."""
    return read_model_and_unknown(path, **options)[0]


def read_model_and_unknown(path: str, **options: object) -> tuple[PreTrainedModel, list[str]]:
    """The model as in `read_model`, and the names of weights in its files that it does not have."""
    result = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True, **options)
    model, loading_info = cast(tuple[PreTrainedModel, dict[str, set[str]]], result)
    if missing_keys := loading_info["missing_keys"]:
        raise ValueError(f"{len(missing_keys)} weights are missing, for example {min(missing_keys)}")
    return model, sorted(loading_info["unexpected_keys"])


@contextmanager
def explain_errors(source: ModelSource) -> Iterator[None]:
    """While open, turn any error into a ValueError that names the key to change, and keep transformers quiet."""
    try:
        with quiet_transformers():
            yield
    except ImportError as error:
        raise ValueError(
            f"model.path {source.path!r} needs a package: {error}; pip install 'evopress[gguf]'"
        ) from error
    except Exception as error:  # the libraries raise errors of many types for a damaged file
        raise ValueError(_explanation(source, error)) from error


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """While open, transformers shows only errors, and no progress bars."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        transformers.logging.enable_progress_bar()


def _explanation(source: ModelSource, error: Exception) -> str:
    if _needs_code(error):
        return _code_refusal(f"model.path {source.path!r}")
    return (
        f"model.path {source.path!r} cannot be loaded as a causal language model with safetensors weights: give a hub "
        f"id that can be reached from here, a folder, or a .gguf file. The error was: "
        f"{str(error).strip() or type(error).__name__}"
    )


def _needs_code(error: Exception) -> bool:
    return "custom code" in str(error)


def _code_refusal(setting: str) -> str:
    return (
        f"{setting} contains its own Python code, which is not run: use a model that transformers supports, or read "
        f"the code and set model.trust_remote_code=true"
    )
