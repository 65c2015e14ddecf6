"""The sources of text by name: `pydoc`, a data set of the hub, or a local file or folder."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Protocol

from evopress.data.documents import Document
from evopress.data.hub_datasets import HUB_DATASETS, TRAIN, HubDataset, read_documents
from evopress.data.text_files import SUFFIXES, read_file, text_files

TOPICS = files("evopress") / "assets/text/python_topics.json"
"""A JSON file that maps the name of each topic to its text. Python's licence is in the same folder."""

BYTES_PER_TOKEN = 4
"""Approximate, for English text."""

AS_ONE_TEXT = "one text, tokenised as a whole"
AS_DOCUMENTS = "documents, each tokenised by itself, joined by a blank line"


class TextSource(Protocol):
    """Documents in a fixed order, and what identifies them."""

    names: Sequence[str]
    """Names of the source for tables, the shortest one first. The last one is unique."""

    has_columns: bool
    """Whether its text is in a column, which `data.text_column` names."""

    def content_key(self) -> str:
        """Identifies the text for caching: a hash of local content, or the name and rows of a hub data set."""

    def split_for(self, split: str) -> str:
        """The first of "train", "validation" and "test" that gives the same text as `split` does."""

    def is_one_text(self, split: str) -> bool:
        """Whether the split is one long text, to be divided by position, rather than a list of documents."""

    def convention(self, split: str) -> str:
        """Describe in words how the text of a split is turned into tokens."""

    def about_tokens(self, split: str) -> int | None:
        """Roughly how many tokens a split has; None: more than anyone needs."""

    def documents(self, column: str, split: str) -> Iterator[Document]:
        """The documents, always in the same order.

        Raises ValueError if the text cannot be read, a column is missing, or the hub cannot be reached.
        """


class PydocSource:
    """The topics of Python's help system, shuffled by the hash of their names.

    The topics differ between releases of Python, so the package contains a copy, taken from Python 3.11.7. If two
    topics have the same text, only the first is used.
    """

    names: Sequence[str] = ("pydoc",)
    has_columns = False

    def content_key(self) -> str:
        texts = (text for document in self.documents("text", TRAIN) for text in document.content)
        return _sha256("\x00".join(map(str, texts)))

    def split_for(self, split: str) -> str:
        return TRAIN

    def is_one_text(self, split: str) -> bool:
        return False

    def convention(self, split: str) -> str:
        return AS_DOCUMENTS

    def about_tokens(self, split: str) -> int:
        return 110_000

    def documents(self, column: str, split: str) -> Iterator[Document]:
        topics: dict[str, str] = json.loads(TOPICS.read_text(encoding="utf-8"))
        name_of_text: dict[str, str] = {}
        for name in sorted(topics, key=_sha256):
            name_of_text.setdefault(topics[name], name)
        for text, name in name_of_text.items():
            yield Document(f"topic {name}", (text,))


class HubSource:
    """A data set of the Hugging Face hub."""

    has_columns = False

    def __init__(self, name: str, dataset: HubDataset):
        self.names: Sequence[str] = (name,)
        self.dataset = dataset

    def content_key(self) -> str:
        splits = {name: asdict(split) for name, split in self.dataset.splits.items()}
        return json.dumps([self.dataset.repository, self.dataset.configuration, splits])

    def split_for(self, split: str) -> str:
        return next(name for name, rows in self.dataset.splits.items() if rows == self.dataset.splits[split])

    def is_one_text(self, split: str) -> bool:
        return self.dataset.splits[split].separator is not None

    def convention(self, split: str) -> str:
        rows = self.dataset.splits[split]
        if rows.separator is None:
            return AS_DOCUMENTS
        which = "all rows" if rows.num_rows is None else f"the first {rows.num_rows} rows"
        place = f" of {rows.file}" if rows.file else f" of the {rows.split} split"
        return f"{which}{place}, joined by {json.dumps(rows.separator)}, tokenised as one text"

    def about_tokens(self, split: str) -> int | None:
        return self.dataset.splits[split].about_tokens

    def documents(self, column: str, split: str) -> Iterator[Document]:
        return read_documents(self.dataset, self.dataset.splits[split])


class FileSource:
    """A local text file, or all text files of a folder. Every split is taken from the same text."""

    def __init__(self, path: Path):
        self.path = path
        place = path.resolve()
        in_folder = [f"{place.parent.name}/{name}" for name in (place.stem, place.name)]
        self.names: Sequence[str] = (place.stem, *in_folder, str(place))
        self.has_columns = any(file.suffix != ".txt" for file in text_files(path))

    def content_key(self) -> str:
        digest = hashlib.sha256()
        for path in text_files(self.path):
            with open(path, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest() + path.suffix.encode())
        return digest.hexdigest()

    def split_for(self, split: str) -> str:
        return TRAIN

    def is_one_text(self, split: str) -> bool:
        return self.path.is_file() and self.path.suffix == ".txt"

    def convention(self, split: str) -> str:
        return AS_ONE_TEXT if self.is_one_text(split) else AS_DOCUMENTS

    def about_tokens(self, split: str) -> int:
        return sum(file.stat().st_size for file in text_files(self.path)) // BYTES_PER_TOKEN

    def documents(self, column: str, split: str) -> Iterator[Document]:
        for file in text_files(self.path):
            yield from read_file(file, column)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def text_source(name: str) -> TextSource:
    """The source with this name. Any unknown name is taken as a path."""
    if name == "pydoc":
        return PydocSource()
    if name in HUB_DATASETS:
        return HubSource(name, HUB_DATASETS[name])
    return FileSource(Path(name))


def check_source(name: str, key: str) -> None:
    """Raise ValueError, naming the setting `key`, unless the source is known or is a file or folder of text."""
    if name == "pydoc" or name in HUB_DATASETS:
        return
    path = Path(name)
    if not path.exists():
        raise ValueError(f"{key} is {name!r}, which is neither pydoc, {', '.join(HUB_DATASETS)} nor a file or folder")
    if path.is_file() and path.suffix not in SUFFIXES:
        raise ValueError(f"{key} is {name!r}: text files end in {', '.join(SUFFIXES)}")
    if path.is_dir() and not text_files(path):
        raise ValueError(f"{key} is {name!r}, a folder without {', '.join(SUFFIXES)} files")


def check_whole_test_split(name: str, key: str) -> None:
    """Raise ValueError, naming the setting `key`, if the test text of the source is too large to use all of it."""
    if text_source(name).about_tokens("test") is None:
        raise ValueError(
            f"{key} is null, which takes the whole test split, but {name} has none: set {key} to a number of tokens"
        )
