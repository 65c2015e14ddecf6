"""Safety checks of a model's files, made before its weights are read."""

from pathlib import Path

from transformers import PretrainedConfig

from evopress.models.location import ModelLocation
from evopress.models.source import ModelSource
from evopress.runtime.json_files import read_json

INDEX = "model.safetensors.index.json"
"""Names the file of each tensor, where a model has several files."""


def check_files(source: ModelSource, location: ModelLocation, config: PretrainedConfig) -> None:
    """Raises ValueError for a model that would run code from the hub, or read files outside of its folder."""
    _check_attention_kernel(source, config)
    _check_index(Path(location.path) / INDEX)


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
