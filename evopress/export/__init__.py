"""Checkpoints that inference engines load, each compared with the searched model before it counts as done."""

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import field
from pathlib import Path
from typing import Literal

import torch
import transformers
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from evopress.compressors.base import Compressor
from evopress.compressors.drop import Drop
from evopress.export.base import Format, Refused, Searched, level_bytes
from evopress.export.card import Facts, card
from evopress.export.compressed_tensors import CompressedTensors
from evopress.export.gguf import FILE as GGUF_FILE
from evopress.export.gguf import GGUF
from evopress.export.hf import HF, Zeroed
from evopress.export.nemotron_nas import NemotronNAS
from evopress.export.verify import verify
from evopress.models.language_model import LanguageModel
from evopress.runtime.config_class import config_class
from evopress.runtime.files import path_in_errors, remove_leftovers
from evopress.space.profile_files import to_json
from evopress.space.settings import SpaceSettings
from evopress.space.units import Space
from evopress.weights.block_grids import TypeName

__all__ = ["FORMATS", "Export", "Facts", "Refused", "Searched", "check", "export", "fixed_bytes", "load"]

log = logging.getLogger(__name__)

FormatName = Literal["hf", "zeroed", "nemotron_nas", "compressed_tensors", "gguf"]
Dtype = Literal["auto", "bfloat16", "float16", "float32"]


@config_class
class Export:
    """Which checkpoints are written; each goes into a folder of its name.

    `dtype` is the type of what is not packed; `auto` is a 16-bit type: the model's, or where the model is float32, the
    one that loses nothing of the scales. `engine` is what compressed_tensors must run in.

    For gguf, `pre_tokenizer` is llama.cpp's name for how the tokenizer splits text (None: recognised by its rules), and
    `embeddings` the block type that embeddings and head are rounded to after the search (None: they stay in `dtype`).
    """

    formats: list[FormatName] = field(default_factory=list)
    dtype: Dtype = "auto"
    engine: Literal["transformers", "vllm"] = "transformers"
    pre_tokenizer: str | None = None
    embeddings: TypeName | None = None


FORMATS: Mapping[str, Callable[[Export], Format]] = {
    "hf": lambda settings: HF(),
    "zeroed": lambda settings: Zeroed(),
    "nemotron_nas": lambda settings: NemotronNAS(),
    "compressed_tensors": lambda settings: CompressedTensors(settings.engine),
    "gguf": lambda settings: GGUF(settings.pre_tokenizer, settings.embeddings),
}
"""How each format is made from the settings."""


def check(
    settings: Export, compressor: Compressor | Drop, space: SpaceSettings, *, dtype: torch.dtype | None = None
) -> None:
    """Raises Refused, which is a ValueError, where a format cannot take what the compressor makes; loads nothing.

    Called at start-up, and again with the type that the model computes in once it is loaded, before the search.
    """
    for name in settings.formats:
        form = FORMATS[name](settings)
        form.refuse_settings(compressor, space)
        if dtype is not None:
            form.refuse_dtype(compressor, dtype)


def fixed_bytes(settings: Export, lm: LanguageModel, space: Space) -> int:
    """Bytes that the largest of the wanted files takes besides the levels, headers included, as foreseen.

    For a budget in bytes. Without a format that packs levels it is what the space says.
    """
    searched = Searched(lm, space, space.uniform(0))
    sizes = []
    for form in (FORMATS[name](settings) for name in settings.formats):
        if form.packs_levels:
            dtype = torch.float16 if settings.dtype == "auto" else getattr(torch, settings.dtype)
            whole = form.predicted_bytes(searched, dtype) + form.predicted_header_bytes(searched)
            sizes.append(whole - level_bytes(searched))
    return max(sizes, default=space.fixed_bytes)


def export(
    settings: Export,
    searched: Searched,
    tokens: Int[Tensor, "windows time"],
    *,
    facts: Facts,
    folder: Path,
) -> dict[str, dict[str, object]]:
    """Write `folder`/<format> for every format of the settings; a folder that is there already is replaced.

    Args:
        tokens: text on which the logits of each checkpoint are compared with the searched model's.
        facts: what the model card tells of the run, in the form of `results.json`.

    Returns:
        What was verified, by format; for `results.json`.

    Raises:
        Refused: some format cannot hold the profile; nothing is written then.
        ValueError: a checkpoint is not what it should be; its folder is not left behind.
    """
    formats = [FORMATS[name](settings) for name in dict.fromkeys(settings.formats)]
    for form in formats:
        form.refuse(searched)
    found = {}
    for form in formats:
        dtype = form.dtype(searched) if settings.dtype == "auto" else getattr(torch, settings.dtype)
        with path_in_errors(folder / form.name), _finished(folder / form.name) as unfinished, _quiet():
            form.write(searched, dtype, unfinished)
            verified = verify(form, searched, dtype, unfinished, tokens)
            text = card(form, searched, verified, facts, folder / form.name)
            (unfinished / "README.md").write_text(text)
            header = {key: facts[key] for key in ("model", "compress", "budget", "search", "seed") if key in facts}
            (unfinished / "profile.json").write_text(to_json(searched.space, searched.profile, **header))
        found[form.name] = {"folder": str(folder / form.name), **verified.as_dict()}
        log.info("%s: %.2f MB, verified, in %s", form.name, verified.written_bytes / 1e6, folder / form.name)
    return found


@contextmanager
def _finished(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target` that takes its place when the body succeeds, and is deleted when not."""
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(target.parent, f".{target.name}-*")
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        if target.exists():
            shutil.rmtree(target)
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Transformers' progress bars and remarks on loading stay out of the log."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        transformers.logging.enable_progress_bar()


def load(path: str | Path, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The model of any exported folder, ready to run; `dtype` is that of the checkpoint unless given.

    Raises ValueError for a folder that holds no checkpoint.
    """
    folder = Path(path)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is not an exported checkpoint: it has no config.json")
    stored = json.loads((folder / "config.json").read_text())
    wanted = dtype or getattr(torch, stored.get("dtype", "float32"))
    form: Format = HF()
    if (folder / GGUF_FILE).is_file():
        form = GGUF()
    elif stored["model_type"] == "nemotron-nas":
        form = NemotronNAS()
    elif "quantization_config" in stored:
        form = CompressedTensors()
    with _quiet():
        return form.load(folder, wanted).eval()
