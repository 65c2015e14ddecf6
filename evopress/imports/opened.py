"""Opens checkpoints, and gives each of them a short name."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from evopress.imports.base import Source
from evopress.imports.compressed_tensors import CompressedTensorsFolder
from evopress.imports.gguf import GGUFSource
from evopress.imports.gptq import AWQFolder, GPTQFolder
from evopress.runtime.json_files import read_json


def open_sources(paths: Sequence[str]) -> dict[str, Source]:
    """The checkpoints by a short name, the end of the path. Raises ValueError if one of them cannot be imported."""
    resolved = [Path(path).resolve() for path in paths]
    if len(set(resolved)) < len(resolved):
        raise ValueError("compress.sources names a checkpoint twice: name each checkpoint once")
    names = [path.stem if path.suffix == ".gguf" else path.name for path in resolved]
    depth = 1
    while len(set(names)) < len(names):
        depth += 1
        names = ["/".join(path.with_suffix("").parts[-depth:]) for path in resolved]
    return {name: _opened(path, _version_of(path)) for name, path in zip(names, resolved, strict=True)}


def _version_of(path: Path) -> tuple[tuple[str, int, int], ...]:
    """Values that change when a file of the checkpoint is written."""
    files = sorted(path.iterdir()) if path.is_dir() else [path] if path.exists() else []
    return tuple((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files)


@lru_cache(maxsize=64)
def _opened(path: Path, version: tuple[tuple[str, int, int], ...]) -> Source:
    """Open a checkpoint, or return the one that was opened at this version."""
    if path.is_file() and path.suffix == ".gguf":
        return GGUFSource(path)
    if not path.is_dir():
        raise ValueError(
            f"compress.sources: {path} is neither a GGUF file nor a folder: name files that end in .gguf, or folders "
            "of checkpoints"
        )
    if (path / "model.gguf").is_file():
        return GGUFSource(path / "model.gguf")
    config = path / "config.json"
    if not config.is_file() or not list(path.glob("*.safetensors")):
        raise ValueError(
            f"compress.sources: {path} has no config.json with safetensors files, and no model.gguf: name a folder "
            "that has either"
        )
    try:
        settings = dict(read_json(config)).get("quantization_config")
        source = _of_settings(path, settings)
        widths = [bits for bits, _ in source.integers] if source else []
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise ValueError(f"compress.sources: quantization_config in {config} is malformed: {error!r}") from error
    if source is None:
        what = f"packed by {settings.get('quant_method')!r}" if settings else "not compressed"
        raise ValueError(
            f"compress.sources: {path} is {what}: name checkpoints of GGUF, compressed-tensors, GPTQ, AWQ (gemm, "
            "4 bits), or AutoRound with the packing of GPTQ or AWQ"
        )
    if any(not 2 <= bits <= 8 for bits in widths):
        raise ValueError(
            f"compress.sources: {path} has codes of {max(widths)} bits, but only codes of 2 to 8 bits can be imported"
        )
    return source


def _of_settings(path: Path, settings: Mapping[str, Any] | None) -> Source | None:
    """The checkpoint with this `quantization_config`; None if it cannot be imported."""
    if not settings:
        return None
    method, packing = settings.get("quant_method"), settings.get("packing_format")
    if method == "compressed-tensors":
        return CompressedTensorsFolder(path, settings)
    if method == "gptq":
        return GPTQFolder(path, settings, plus_one=settings.get("checkpoint_format", "gptq") == "gptq")
    if method == "auto-round" and packing == "auto_round:auto_gptq":
        return GPTQFolder(path, settings, plus_one=True)
    is_awq = method == "awq" and settings.get("version", "gemm") == "gemm"
    if (is_awq or packing == "auto_round:auto_awq") and settings["bits"] == 4:
        return AWQFolder(path, {"sym": is_awq and not settings.get("zero_point", True), **settings})
    return None
