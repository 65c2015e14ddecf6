"""Where a model came from, and the small files that were published with it."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from transformers import PreTrainedModel

from evopress.models.location import ModelLocation
from evopress.models.source import ModelSource
from evopress.runtime.checksums import sha256_of

log = logging.getLogger(__name__)

CARD = "README.md"

MODEL_FILES = (
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "chat_template.json",
)
"""Licences, and the files of an image processor. `chat_template.json` is an old name of its chat template."""

TOKENIZER_FILES = (
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*.json",
    "vocab*.txt",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "tekken.json",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a model came from.

    `hub_id` is None for a model that is not from the hub. The folders contain the files that were published with the
    model and with its tokenizer. They are None if these files are unknown, as for a tokenizer that was made in memory.
    """

    hub_id: str | None = None
    model_folder: Path | None = None
    tokenizer_folder: Path | None = None

    @property
    def card(self) -> Path | None:
        """The model card, if there is one."""
        return next(iter(_files_in(self.model_folder, (CARD,)).values()), None)

    @property
    def model_files(self) -> dict[str, Path]:
        """Licences and processor files, by their path in the folder."""
        return _files_in(self.model_folder, MODEL_FILES)

    @property
    def tokenizer_files(self) -> dict[str, Path]:
        """Files of the tokenizer, by their path in the folder."""
        return _files_in(self.tokenizer_folder, TOKENIZER_FILES)

    @property
    def identity(self) -> dict[str, str | None]:
        """The hub id, and the SHA-256 of every file."""
        files = {**self.tokenizer_files, **self.model_files, **({CARD: self.card} if self.card else {})}
        return {"hub_id": self.hub_id, **{name: sha256_of(path) for name, path in sorted(files.items())}}


def find_origin(source: ModelSource, location: ModelLocation) -> Origin:
    """The origin of a model that is loaded from `location`. Downloads the small files of a model on the hub."""
    model_folder = _folder_of(location.path, source.revision)
    if source.tokenizer is not None:
        tokenizer_folder = _folder_of(source.tokenizer, None)
    else:
        tokenizer_folder = None if location.gguf_file else model_folder
    hub_id = None if location.is_local else location.path
    return Origin(hub_id=hub_id, model_folder=model_folder, tokenizer_folder=tokenizer_folder)


def origin_in_memory(model: PreTrainedModel) -> Origin:
    """The origin of a model in memory. It is known if transformers loaded it from the hub. Downloads nothing.

    Files of the tokenizer are not included, because the tokenizer may have been changed since it was loaded.
    """
    path = str(model.config.name_or_path)
    try:
        cached = try_to_load_from_cache(path, "config.json")
    except HFValidationError:  # no hub id
        cached = None
    if not isinstance(cached, str) or Path(path).exists():
        return Origin()
    return Origin(hub_id=path, model_folder=Path(cached).parent)


def _folder_of(path: str, revision: str | None) -> Path | None:
    """A local folder itself, or the folder in the hub's cache, with as many of the small files as are available."""
    if Path(path).is_dir():
        return Path(path)
    try:
        patterns = [CARD, *MODEL_FILES, *TOKENIZER_FILES]
        return Path(snapshot_download(path, revision=revision, allow_patterns=patterns))
    except LocalEntryNotFoundError as error:  # without a network, the cache may lack some of them
        folder = getattr(error, "snapshot_path", None)
        return Path(folder) if folder else None


def _files_in(folder: Path | None, patterns: Iterable[str]) -> dict[str, Path]:
    """Files by their path in the folder. Links to outside the folder are left out, except those of the hub's cache.

    Otherwise an untrusted folder could get any file of this machine published.
    """
    if folder is None:
        return {}
    paths = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    root = folder.parents[1] if folder.parent.name == "snapshots" else folder
    inside = {path for path in paths if path.resolve().is_relative_to(root.resolve())}
    for path in sorted(paths - inside):
        log.warning("%s leads out of its folder and is not copied into checkpoints: replace the link by the file", path)
    return {path.relative_to(folder).as_posix(): path for path in sorted(inside)}
