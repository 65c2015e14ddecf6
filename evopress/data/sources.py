"""Where text comes from: documents in a fixed order, from the standard library, local files or the hub."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from importlib import import_module
from pathlib import Path

import pyarrow
import pyarrow.parquet

log = logging.getLogger(__name__)

HUB = {
    "wikitext2": (
        "Salesforce/wikitext",
        "wikitext-2-raw-v1",
        {"train": "train", "validation": "validation", "test": "test"},
    ),
    "c4": ("allenai/c4", "en", {"train": "train", "validation": "validation", "test": "validation"}),
    "fineweb_edu": (
        "HuggingFaceFW/fineweb-edu",
        "sample-10BT",
        {"train": "train", "validation": "train", "test": "train"},
    ),
}
"""Repository, configuration, and which of its splits serves as which."""

SUFFIXES = (".txt", ".jsonl", ".parquet")


def exists(source: str) -> bool:
    return source == "pydoc" or source in HUB or Path(source).exists()


def check(source: str, key: str) -> None:
    """Raises ValueError, naming `key`, for a source that is neither known nor a file or folder of text."""
    if not exists(source):
        raise ValueError(f"{key} is {source!r}, which is neither pydoc, {', '.join(HUB)} nor a file or folder")
    path = Path(source)
    if source == "pydoc" or source in HUB:
        return
    if path.is_file() and path.suffix not in SUFFIXES:
        raise ValueError(f"{key} is {source!r}: text files end in {', '.join(SUFFIXES)}")
    if path.is_dir() and not _files(path):
        raise ValueError(f"{key} is {source!r}, a folder without {', '.join(SUFFIXES)} files")


def own_split(source: str, split: str) -> str | None:
    """The hub split that serves as `split` where it is another than the training text, else None."""
    name = HUB[source][2][split] if source in HUB else "train"
    return None if name == "train" else name


def is_one_text(source: str) -> bool:
    """Whether the source is one long text, to be divided by position, rather than a list of documents."""
    return Path(source).suffix == ".txt" and source not in HUB


def content_key(source: str) -> str:
    """What identifies the text, without tokenising it: a hash of local content, the name of a hub data set."""
    if source == "pydoc":
        return sha256("\x00".join(documents(source, "text", "train")).encode()).hexdigest()
    if source in HUB:
        return json.dumps(HUB[source])
    digest = sha256()
    for file in _files(Path(source)):
        digest.update(sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def documents(source: str, column: str, split: str) -> Iterator[str]:
    """The documents of a source, always in the same order.

    Raises ValueError for text that is not UTF-8, a missing column, or a hub that cannot be reached.
    """
    if source == "pydoc":
        yield from _pydoc()
    elif source in HUB:
        yield from _hub(source, split)
    else:
        for file in _files(Path(source)):
            readers = {".txt": _txt, ".jsonl": _jsonl, ".parquet": _parquet}
            yield from readers[file.suffix](file, column)


def _pydoc() -> Iterator[str]:
    """The topics of Python's help system, shuffled by the hash of their names."""
    topics: dict[str, str] = import_module("pydoc_data.topics").topics
    for name in sorted(topics, key=lambda name: sha256(name.encode()).digest()):
        yield topics[name]


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES)


def _txt(file: Path, column: str) -> Iterator[str]:
    yield _decoded(file, file.read_bytes())


def _jsonl(file: Path, column: str) -> Iterator[str]:
    for number, line in enumerate(_decoded(file, file.read_bytes()).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"data.source: line {number} of {file} is not JSON ({error})") from error
        if not isinstance(entry, dict) or not isinstance(entry.get(column), str):
            found = ", ".join(map(str, entry)) if isinstance(entry, dict) else type(entry).__name__
            raise ValueError(f"line {number} of {file} has no text in {column!r} but {found}: set data.text_column")
        try:
            entry[column].encode()
        except UnicodeEncodeError as error:  # \ud800, half of a character: JSON, but not text
            raise ValueError(f"data.source: line {number} of {file} is not Unicode text ({error.reason})") from error
        yield entry[column]


def _parquet(file: Path, column: str) -> Iterator[str]:
    with _explained(file):
        table = pyarrow.parquet.ParquetFile(file)
    if column not in table.schema_arrow.names:
        raise ValueError(
            f"{file} has no column {column!r} but {', '.join(table.schema_arrow.names)}: set data.text_column"
        )
    batches = table.iter_batches(columns=[column])
    while True:
        with _explained(file):
            batch = next(batches, None)
            values = batch.column(0).to_pylist() if batch is not None else None
        if values is None:
            return
        for text in values:
            if text is not None and not isinstance(text, str):
                raise ValueError(f"column {column!r} of {file} holds {type(text).__name__}: set data.text_column")
            if text:
                yield text


@contextmanager
def _explained(file: Path) -> Iterator[None]:
    """Name the file in what pyarrow says of a damaged one."""
    try:
        yield
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"data.source: {file} is not a parquet file, or is damaged ({reason})") from error


def _hub(source: str, split: str) -> Iterator[str]:
    from datasets import load_dataset  # takes seconds, and local text does without

    repository, configuration, splits = HUB[source]
    try:
        rows = load_dataset(repository, configuration, split=splits[split], streaming=True)
        for row in rows:
            if row["text"]:
                yield row["text"]
    except (OSError, ConnectionError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"data.source is {source!r} but {repository} cannot be read from the hub ({str(error).splitlines()[0]}): "
            f"check the network, or use data=pydoc, or data=text data.source=FILE"
        ) from error


def _decoded(file: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"data.source: {file} is not UTF-8 text (byte {error.start})") from error
