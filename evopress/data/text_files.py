"""Readers of local text files, one per file type. A file is read only as far as its text is needed."""

import json
from codecs import getincrementaldecoder
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pyarrow
import pyarrow.parquet

from evopress.data.documents import Document, document_of_value

PIECE_BYTES = 2**16
"""A .txt file is read in pieces of this size."""

BATCH_ROWS = 256
"""A .parquet file is read in batches of this size."""


def read_file(file: Path, column: str) -> Iterator[Document]:
    """The documents of a file. `column` is the column with the text, if the file type has columns.

    Raises ValueError if the file is damaged, is not UTF-8 or has no such column.
    """
    return READERS[file.suffix](file, column)


def text_files(path: Path) -> list[Path]:
    """The file itself, or all text files of a folder in the order of their names, without hidden files and folders."""
    if path.is_file():
        return [path]
    files = (file for file in path.rglob("*") if file.suffix in SUFFIXES and file.is_file())
    return sorted(file for file in files if not _is_hidden(file.relative_to(path)))


def _is_hidden(path: Path) -> bool:
    """Whether the file or a folder that contains it is hidden, as the copies in .ipynb_checkpoints are."""
    return any(part.startswith(".") for part in path.parts)


def read_txt(file: Path, column: str) -> Iterator[Document]:
    """The whole file as one document."""
    yield Document(str(file), _pieces(file))


def _pieces(file: Path) -> Iterator[str]:
    decoder = getincrementaldecoder("utf-8-sig")()
    num_bytes = 0
    with open(file, "rb") as opened:
        while True:
            content = opened.read(PIECE_BYTES)
            waiting = len(decoder.getstate()[0])  # bytes of a character that the end of the last piece cut
            try:
                yield decoder.decode(content, final=not content)
            except UnicodeDecodeError as error:
                raise _not_utf8(file, num_bytes - waiting + error.start) from error
            if not content:
                return
            num_bytes += len(content)


def read_jsonl(file: Path, column: str) -> Iterator[Document]:
    """One document per line; empty lines are skipped."""
    num_bytes = 0
    with open(file, "rb") as opened:
        for number, content in enumerate(opened, start=1):
            try:
                line = content.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise _not_utf8(file, num_bytes + error.start) from error
            if line.strip():
                yield _document_of_line(line, f"line {number} of {file}", column)
            num_bytes += len(content)


def _document_of_line(line: str, name: str, column: str) -> Document:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not JSON ({error})") from error
    if not isinstance(entry, dict) or column not in entry:
        content = f"its keys are {', '.join(map(str, entry))}" if isinstance(entry, dict) else "it is not an object"
        raise ValueError(f"{name} has no text in {column!r} ({content}): set data.text_column")
    return document_of_value(entry[column], name, column)


def read_parquet(file: Path, column: str) -> Iterator[Document]:
    """One document per row; empty rows are skipped."""
    with _explain_damage(file):
        table = pyarrow.parquet.ParquetFile(file)
    if column not in table.schema_arrow.names:
        raise ValueError(
            f"{file} has no column {column!r} (its columns are {', '.join(table.schema_arrow.names)}): set "
            "data.text_column"
        )
    values = (value for batch in _batches(file, table, column) for value in batch)
    for number, value in enumerate(values, start=1):
        if value is not None and value != "":
            yield document_of_value(value, f"row {number} of {file}", column)


def _batches(file: Path, table: pyarrow.parquet.ParquetFile, column: str) -> Iterator[list[object]]:
    batches = table.iter_batches(BATCH_ROWS, columns=[column])
    while True:
        with _explain_damage(file):
            batch = next(batches, None)
            values = batch.column(0).to_pylist() if batch is not None else None
        if values is None:
            return
        yield values


@contextmanager
def _explain_damage(file: Path) -> Iterator[None]:
    """While open, turn pyarrow's errors into errors that name the file."""
    try:
        yield
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{file} is not a parquet file, or is damaged ({reason})") from error


def _not_utf8(file: Path, byte: int) -> ValueError:
    return ValueError(f"{file} is not UTF-8 text (byte {byte})")


READERS: Mapping[str, Callable[[Path, str], Iterator[Document]]] = {
    ".txt": read_txt,
    ".jsonl": read_jsonl,
    ".parquet": read_parquet,
}
"""The reader for each file suffix."""

SUFFIXES = tuple(READERS)
