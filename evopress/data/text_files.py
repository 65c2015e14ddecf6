"""Readers of local text files, one per file type."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pyarrow
import pyarrow.parquet


def read_file(file: Path, column: str) -> Iterator[str]:
    """The documents of a file. `column` contains the text, where the file type has columns.

    Raises ValueError for a file that is damaged, is not UTF-8 or has no such column.
    """
    return READERS[file.suffix](file, column)


def text_files(path: Path) -> list[Path]:
    """The file itself, or all text files of a folder in the order of their names."""
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES)


def read_txt(file: Path, column: str) -> Iterator[str]:
    """The whole file as one document."""
    yield _decoded(file, file.read_bytes())


def read_jsonl(file: Path, column: str) -> Iterator[str]:
    """One document per line; empty lines are skipped."""
    for number, line in enumerate(_decoded(file, file.read_bytes()).split("\n"), start=1):
        if line.strip():
            yield _text_of_line(line, f"line {number} of {file}", column)


def _text_of_line(line: str, place: str, column: str) -> str:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"data.source: {place} is not JSON ({error})") from error
    if not isinstance(entry, dict) or not isinstance(entry.get(column), str):
        content = ", ".join(map(str, entry)) if isinstance(entry, dict) else type(entry).__name__
        raise ValueError(f"{place} has no text in {column!r} but {content}: set data.text_column")
    try:
        entry[column].encode()
    except UnicodeEncodeError as error:  # \ud800, half of a character, is valid JSON but not text
        raise ValueError(f"data.source: {place} is not Unicode text ({error.reason})") from error
    return entry[column]


def read_parquet(file: Path, column: str) -> Iterator[str]:
    """One document per row; empty rows are skipped."""
    with _explain_damage(file):
        table = pyarrow.parquet.ParquetFile(file)
    if column not in table.schema_arrow.names:
        raise ValueError(
            f"{file} has no column {column!r} but {', '.join(table.schema_arrow.names)}: set data.text_column"
        )
    for values in _batches(file, table, column):
        for text in values:
            if text is not None and not isinstance(text, str):
                raise ValueError(f"column {column!r} of {file} holds {type(text).__name__}: set data.text_column")
            if text:
                yield text


def _batches(file: Path, table: pyarrow.parquet.ParquetFile, column: str) -> Iterator[list[object]]:
    batches = table.iter_batches(columns=[column])
    while True:
        with _explain_damage(file):
            batch = next(batches, None)
            values = batch.column(0).to_pylist() if batch is not None else None
        if values is None:
            return
        yield values


@contextmanager
def _explain_damage(file: Path) -> Iterator[None]:
    """Name the file in pyarrow's errors."""
    try:
        yield
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"data.source: {file} is not a parquet file, or is damaged ({reason})") from error


def _decoded(file: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"data.source: {file} is not UTF-8 text (byte {error.start})") from error


READERS: Mapping[str, Callable[[Path, str], Iterator[str]]] = {
    ".txt": read_txt,
    ".jsonl": read_jsonl,
    ".parquet": read_parquet,
}
"""By the suffix of the file."""

SUFFIXES = tuple(READERS)
