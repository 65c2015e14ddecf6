"""Files that are whole or not there, and their checksums. A file without the checksum it should have is damaged."""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

log = logging.getLogger(__name__)

CHECKSUMS = "checksums.json"
"""The file of a folder that holds the SHA-256 of the others."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError raised inside names `path`; that of a full disk does not by itself.

    So does an error of a library in Rust (safetensors, tokenizers), which has the system's number in its words.
    """
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    except Exception as error:
        if found := re.search(r"os error (\d+)|Os \{ code: (\d+)", str(error)):
            number = int(found[1] or found[2])
            raise OSError(number, os.strerror(number), str(path)) from error
        raise


def write_atomically(path: Path, content: bytes | str) -> None:
    """Replace `path` by `content`, or leave it as it was: temporary file beside it, fsync, rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with naming(path):
        try:
            with open(temporary, "wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """`content` as indented JSON, whole or not at all."""
    write_atomically(path, json.dumps(content, indent=1) + "\n")


def parse_json(text: str | bytes) -> Any:
    """The value that `text` is. Raises ValueError for anything else, a key given twice, or nesting too deep."""
    try:
        return json.loads(text, object_pairs_hook=unique)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def unique(pairs: Iterable[tuple[str, object]]) -> dict[str, object]:
    """A dict of pairs. Raises ValueError for a key given twice."""
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key!r} is given twice")
        found[key] = value
    return found


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    return parse_json(path.read_text(encoding="utf-8"))


def read_if_whole(path: Path) -> dict[str, Any]:
    """The object in a JSON file that can be made again; empty without one, and, with a warning, where it is damaged."""
    if not path.exists():
        return {}
    try:
        return check_seal(read_json(path))
    except ValueError as error:
        log.warning("%s is damaged (%s) and will be made again", path, error)
        return {}


def sealed(content: Mapping[str, object]) -> dict[str, object]:
    """`content` with a checksum, by which `check_seal` finds a change that leaves it valid JSON."""
    return {**content, "sha256": _seal(content)}


def check_seal(content: object) -> dict[str, Any]:
    """What `sealed` was given. Raises ValueError when it was changed, or has no checksum."""
    if not isinstance(content, dict):
        raise ValueError("it is not an object")
    if "sha256" not in content:
        raise ValueError("it has no sha256")
    if content["sha256"] != _seal(content):
        raise ValueError("its content is not that of its sha256")
    return {key: value for key, value in content.items() if key != "sha256"}


def _seal(content: Mapping[str, object]) -> str:
    bare = {key: value for key, value in content.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(bare, sort_keys=True).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_checksums(folder: Path) -> None:
    """Enter the SHA-256 of every file of a finished folder in a file of its own."""
    files = {path.name: sha256_of(path) for path in sorted(folder.iterdir())}
    write_json(folder / CHECKSUMS, sealed({"files": files}))


def is_whole(folder: Path) -> bool:
    """Whether a folder is there with the files that `write_checksums` saw, and no others."""
    try:
        recorded = check_seal(read_json(folder / CHECKSUMS)).get("files")
    except (OSError, ValueError):
        return False
    return recorded == {path.name: sha256_of(path) for path in folder.iterdir() if path.name != CHECKSUMS}


def remove_leftovers(folder: Path, pattern: str) -> None:
    """Delete what a killed process left unfinished; only for one that holds the lock of `folder`."""
    for path in folder.glob(pattern):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes out of a run directory. Raises ValueError where one is in it already."""
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"another process runs in {folder}: wait for it, or give this one a directory of its own by hydra.run.dir"
        ) from None
    try:
        remove_leftovers(folder, ".*.tmp")
        yield
    finally:
        lock.release()
