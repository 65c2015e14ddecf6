"""Checks a model's files and configuration before its weights are read."""

from collections.abc import Iterator
from pathlib import Path

from transformers import PretrainedConfig

from evopress.runtime.json_files import read_json

INDEX = "model.safetensors.index.json"
"""The file that names the file of each tensor, if a model has several weight files."""

ADAPTER = "adapter_config.json"
"""The file of an adapter, which names the model that it belongs to."""

PLAIN_ATTENTION = (None, "eager", "sdpa", "flex_attention")
"""The attention implementations that torch contains. For any other one, transformers may download a kernel."""

QUANTIZATION_KEYS = ("quantization_config", "compression_config")
"""Keys of a configuration whose weights are codes. The second one is in files of old releases of compressed-tensors."""


def check_files(path: str | Path, config: PretrainedConfig, *, attention: str | None, setting: str) -> None:
    """Raise ValueError for a model that would run code from the hub, or read files outside its folder.

    Args:
        path: a folder, whose files are checked, or a hub id.
        attention: the attention implementation that the user chose; None if the configuration decides.
        setting: how the user chooses it, for errors.
    """
    if attention is None:
        check_attention(config, setting)
    folder = Path(path)
    if (folder / ADAPTER).is_file():
        raise ValueError(f"it is an adapter of another model, by its {ADAPTER}: merge the two and use the merged model")
    named = getattr(config, "transformers_weights", None)
    if named is not None and (Path(str(named)).name != named or ".safetensors" not in Path(str(named)).suffixes):
        raise ValueError(f"its configuration names the weights {named!r}, which is no safetensors file in its folder")
    for index in {INDEX, str(named)}:
        if index.endswith(".json") and (folder / index).is_file():
            _check_index(folder / index)


def check_attention(config: PretrainedConfig, setting: str) -> None:
    """Raise ValueError for an attention implementation that transformers may download and run."""
    for part in _parts(config):
        if part._attn_implementation not in PLAIN_ATTENTION:
            raise ValueError(
                f"its configuration asks for {part._attn_implementation}, which may be code from the hub: set {setting}"
            )


def check_is_dense(config: PretrainedConfig, name: str) -> None:
    """Raise ValueError if a configuration says that the model's weights are codes. `name` is for the error."""
    parts = (config, config.get_text_config())
    values = [getattr(part, key, None) for key in QUANTIZATION_KEYS for part in parts]
    settings = next((value for value in values if value), None)
    if settings is None:
        return
    method = (settings if isinstance(settings, dict) else settings.to_dict()).get("quant_method")
    raise ValueError(
        f"{name} is quantised already ({getattr(method, 'value', method)}, by its quantization_config), but "
        f"compression starts from 16-bit or 32-bit weights: set model.path to the model that it was made from. To use "
        f"a result of evopress as a model, export it with export.formats=[hf]"
    )


def _parts(config: PretrainedConfig) -> Iterator[PretrainedConfig]:
    """Yield the configuration, and the configurations of the models inside the model."""
    yield config
    for value in vars(config).values():
        if isinstance(value, PretrainedConfig):
            yield from _parts(value)


def _check_index(index: Path) -> None:
    """Raise ValueError for an index that names anything but safetensors files next to it."""
    files = set(map(str, read_json(index)["weight_map"].values()))
    wrong = sorted(name for name in files if Path(name).name != name or not name.endswith(".safetensors"))
    if wrong:
        raise ValueError(f"{index.name} names {wrong[0]}, which is not a safetensors file in its folder")
