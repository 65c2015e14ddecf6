"""Converts a GGUF file to a folder of safetensors, once, and keeps the folder in the cache."""

import json
import logging
import os
import shutil
import tempfile
from functools import cache as cache_calls
from hashlib import sha256
from pathlib import Path

import torch
from filelock import FileLock
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from evopress.models.pretrained import explain_errors, read_model
from evopress.models.source import ModelSource
from evopress.runtime.checksums import folder_is_intact, sha256_of, write_checksums
from evopress.runtime.files import path_in_errors, remove_leftovers
from evopress.runtime.versions import library_versions

log = logging.getLogger(__name__)


def converted_folder(source: ModelSource, gguf: Path, cache: Path) -> Path:
    """The folder in `cache` with the safetensors form of a GGUF file. It is verified, or made if it does not exist.

    Raises ValueError if the GGUF file does not exist or cannot be read.
    """
    folder = _folder_of(source, gguf, cache)
    if _is_intact(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock"):
        if not _is_intact(folder):  # another process may have made it in the meantime
            if folder.is_dir():
                log.warning("%s is damaged and will be recreated", folder)
            log.info("converting %s to safetensors; later runs will reuse the result", gguf.name)
            remove_leftovers(folder.parent, f".{folder.name}-*")
            _convert(source, gguf, folder)
    return folder


def existing_conversion(source: ModelSource, gguf: Path, cache: Path) -> Path | None:
    """The folder that `converted_folder` made earlier, verified; None if there is none. Does not convert."""
    folder = _folder_of(source, gguf, cache)
    return folder if _is_intact(folder) else None


def _folder_of(source: ModelSource, gguf: Path, cache: Path) -> Path:
    if not gguf.is_file():
        raise ValueError(f"model.gguf_file is {gguf.name!r}, which does not exist in {gguf.parent}")
    content = _sha256_of_version(gguf, _version_of(gguf))
    depends_on = [content, library_versions("evopress", "gguf", "transformers")]
    return cache / "models" / f"{source.name}-{sha256(json.dumps(depends_on).encode()).hexdigest()[:12]}"


def _is_intact(folder: Path) -> bool:
    versions = tuple(_version_of(path) for path in sorted(folder.iterdir())) if folder.is_dir() else ()
    return bool(versions) and _version_is_intact(folder, versions)


def _version_of(path: Path) -> tuple[str, int, int]:
    """Values that change when a file is written. They allow large files to be read for their checksums only once."""
    state = path.stat()
    return path.name, state.st_size, state.st_mtime_ns


@cache_calls
def _sha256_of_version(path: Path, version: tuple[str, int, int]) -> str:
    return sha256_of(path)


@cache_calls
def _version_is_intact(folder: Path, versions: tuple[tuple[str, int, int], ...]) -> bool:
    return folder_is_intact(folder)


def _convert(source: ModelSource, gguf: Path, folder: Path) -> None:
    """Write `folder` completely or not at all."""
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with explain_errors(source):
            options = {"gguf_file": gguf.name, "trust_remote_code": source.trust_remote_code}
            model = read_model(str(gguf.parent), dtype=torch.float32, **options)
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **options)
        with path_in_errors(folder):
            without_quantization(model).save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            write_checksums(temporary)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def without_quantization(model: PreTrainedModel) -> PreTrainedModel:
    """A copy, with the same weights, of a model that was read from GGUF.

    The copy can be saved. transformers refuses to save the original, because it counts as quantised.
    """
    settings = {key: value for key, value in model.config.to_dict().items() if key != "quantization_config"}
    config = AutoConfig.for_model(**settings)
    config.dtype = model.dtype
    plain = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    plain.load_state_dict(model.state_dict())
    plain.tie_weights()
    return plain
