"""The sources of text by name: `pydoc`, a data set of the hub, or a local file or folder."""

import json
from collections.abc import Iterator
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Protocol

from evopress.data.hub_datasets import HUB_DATASETS, HubDataset, read_documents
from evopress.data.text_files import SUFFIXES, read_file, text_files


class TextSource(Protocol):
    """Documents in a fixed order, and what identifies them."""

    label: str
    """What the source is called in tables."""

    is_one_text: bool
    """Whether the source is one long text, to be divided by position, rather than a list of documents."""

    def content_key(self) -> str:
        """What identifies the text, for caching: a hash of local content, the name of a hub data set."""

    def split_for(self, split: str) -> str:
        """The split of the source that serves as `split` ("train", "validation", "test")."""

    def documents(self, column: str, split: str) -> Iterator[str]:
        """The documents, always in the same order.

        Raises ValueError for text that cannot be read, a missing column, or a hub that cannot be reached.
        """


class PydocSource:
    """The topics of Python's help system, shuffled by the hash of their names: text without a file or a network."""

    label = "pydoc"
    is_one_text = False

    def content_key(self) -> str:
        return sha256("\x00".join(self.documents("text", "train")).encode()).hexdigest()

    def split_for(self, split: str) -> str:
        return "train"

    def documents(self, column: str, split: str) -> Iterator[str]:
        topics: dict[str, str] = import_module("pydoc_data.topics").topics
        for name in sorted(topics, key=lambda name: sha256(name.encode()).digest()):
            yield topics[name]


class HubSource:
    """A data set of the hub."""

    is_one_text = False

    def __init__(self, label: str, dataset: HubDataset):
        self.label = label
        self.dataset = dataset

    def content_key(self) -> str:
        return json.dumps([self.dataset.repository, self.dataset.configuration, dict(self.dataset.splits)])

    def split_for(self, split: str) -> str:
        return self.dataset.splits[split]

    def documents(self, column: str, split: str) -> Iterator[str]:
        return read_documents(self.label, self.dataset, split)


class FileSource:
    """A local text file, or all text files of a folder. Every split is taken from the same text."""

    def __init__(self, path: Path):
        self.path = path
        self.label = path.stem
        self.is_one_text = path.suffix == ".txt"

    def content_key(self) -> str:
        digest = sha256()
        for file in text_files(self.path):
            digest.update(sha256(file.read_bytes()).digest())
        return digest.hexdigest()

    def split_for(self, split: str) -> str:
        return "train"

    def documents(self, column: str, split: str) -> Iterator[str]:
        for file in text_files(self.path):
            yield from read_file(file, column)


def text_source(name: str) -> TextSource:
    """The source with this name; any name that is not known is a path."""
    if name == "pydoc":
        return PydocSource()
    if name in HUB_DATASETS:
        return HubSource(name, HUB_DATASETS[name])
    return FileSource(Path(name))


def check_source(name: str, key: str) -> None:
    """Raises ValueError, naming the setting `key`, for a source that is not known and no file or folder of text."""
    if name == "pydoc" or name in HUB_DATASETS:
        return
    path = Path(name)
    if not path.exists():
        raise ValueError(f"{key} is {name!r}, which is neither pydoc, {', '.join(HUB_DATASETS)} nor a file or folder")
    if path.is_file() and path.suffix not in SUFFIXES:
        raise ValueError(f"{key} is {name!r}: text files end in {', '.join(SUFFIXES)}")
    if path.is_dir() and not text_files(path):
        raise ValueError(f"{key} is {name!r}, a folder without {', '.join(SUFFIXES)} files")
