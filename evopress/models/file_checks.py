"""Checks of a model's files and configuration, made before its weights are read."""

from pathlib import Path

from transformers import PretrainedConfig

from evopress.models.location import ModelLocation
from evopress.models.source import ModelSource
from evopress.runtime.json_files import read_json

INDEX = "model.safetensors.index.json"
"""Names the file of each tensor, where a model has several files."""


QUANTIZATION_KEYS = ("quantization_config", "compression_config")
"""Where a configuration says that the weights are codes; the second one is the name of old compressed-tensors files."""


def check_files(source: ModelSource, location: ModelLocation, config: PretrainedConfig) -> None:
    """Raises ValueError for a model that would run code from the hub, or read files outside of its folder."""
    _check_attention_kernel(source, config)
    _check_index(Path(location.path) / INDEX)


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


def _check_attention_kernel(source: ModelSource, config: PretrainedConfig) -> None:
    """An attention implementation with a slash in its name is a kernel that transformers downloads and runs."""
    kernel = str(getattr(config, "_attn_implementation", None))
    if source.attention == "auto" and "/" in kernel and not source.trust_remote_code:
        raise ValueError(f"its configuration asks for {kernel}, code from the hub: set model.attention")


def _check_index(index: Path) -> None:
    if not index.is_file():
        return
    files = set(map(str, read_json(index)["weight_map"].values()))
    outside = [name for name in files if Path(name).name != name]
    if outside:
        raise ValueError(f"{INDEX} names {outside[0]}, which is not a file of its folder")
