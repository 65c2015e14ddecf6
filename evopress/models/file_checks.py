"""Checks of a model's files and configuration, made before its weights are read."""

from collections.abc import Iterator
from pathlib import Path

from transformers import PretrainedConfig

from evopress.runtime.json_files import read_json

INDEX = "model.safetensors.index.json"
"""Names the file of each tensor, where a model has several files."""

ADAPTER = "adapter_config.json"
"""Names another model, to whose weights those of the folder are added."""

PLAIN_ATTENTION = (None, "eager", "sdpa", "flex_attention")
"""The attention implementations for which transformers needs nothing else. For others it may download a kernel."""

QUANTIZATION_KEYS = ("quantization_config", "compression_config")
"""Where a configuration says that the weights are codes; the second one is the name of old compressed-tensors files."""


def check_files(path: str | Path, config: PretrainedConfig, *, attention: str | None, setting: str) -> None:
    """Raises ValueError for a model that would run code from the hub, or read files outside of its folder.

    Args:
        path: a folder, whose files are checked, or a hub id.
        attention: the attention implementation that the user chose; None is that of the configuration.
        setting: where the user chooses it, for errors.
    """
    if attention is None:
        check_attention(config, setting)
    folder = Path(path)
    if (folder / ADAPTER).is_file():
        raise ValueError(f"it is an adapter of another model, by its {ADAPTER}: merge the two and give the result")
    named = getattr(config, "transformers_weights", None)
    if named is not None and (Path(str(named)).name != named or ".safetensors" not in Path(str(named)).suffixes):
        raise ValueError(f"its configuration names the weights {named!r}, which is no safetensors file of its folder")
    for index in {INDEX, str(named)}:
        if index.endswith(".json") and (folder / index).is_file():
            _check_index(folder / index)


def check_attention(config: PretrainedConfig, setting: str) -> None:
    """Raises ValueError for an attention implementation that transformers may download and run."""
    for part in _parts(config):
        if part._attn_implementation not in PLAIN_ATTENTION:
            raise ValueError(
                f"its configuration asks for {part._attn_implementation}, which may be code from the hub: set {setting}"
            )


def check_is_dense(config: PretrainedConfig, name: str) -> None:
    """Raises ValueError for the configuration of a model whose weights are stored as codes. `name` is for the error."""
    parts = (config, config.get_text_config())
    found = [getattr(part, key, None) for key in QUANTIZATION_KEYS for part in parts]
    settings = next((value for value in found if value), None)
    if settings is None:
        return
    method = (settings if isinstance(settings, dict) else settings.to_dict()).get("quant_method")
    raise ValueError(
        f"{name} is quantized already ({getattr(method, 'value', method)}, by its quantization_config), and "
        f"compression starts from 16-bit or 32-bit weights: give the model that it was made from as model.path; "
        f"export.formats=[hf] writes a result of this program in a form that can be read again"
    )


def _parts(config: PretrainedConfig) -> Iterator[PretrainedConfig]:
    """The configuration, and those of the models inside the model."""
    yield config
    for value in vars(config).values():
        if isinstance(value, PretrainedConfig):
            yield from _parts(value)


def _check_index(index: Path) -> None:
    """Raises ValueError for an index that names anything but safetensors files next to it."""
    files = set(map(str, read_json(index)["weight_map"].values()))
    wrong = sorted(name for name in files if Path(name).name != name or not name.endswith(".safetensors"))
    if wrong:
        raise ValueError(f"{index.name} names {wrong[0]}, which is not a safetensors file of its folder")
