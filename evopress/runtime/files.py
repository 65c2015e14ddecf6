"""Files that are either complete or absent, and a lock on a run directory."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def path_in_errors(path: Path) -> Iterator[None]:
    """Add `path` to every OSError that the body raises. Without this, the error of a full disk names no file.

    Rust libraries (safetensors, tokenizers) raise other exceptions, with the error number of the system in the text.
    These become OSErrors too.
    """
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    except Exception as error:
        if match := re.search(r"os error (\d+)|Os \{ code: (\d+)", str(error)):
            number = int(match[1] or match[2])
            raise OSError(number, os.strerror(number), str(path)) from error
        raise


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write `content` to `path` completely or not at all: write a temporary file next to it, fsync, rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with path_in_errors(path):
        try:
            with open(temporary, "wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path, pattern: str) -> None:
    """Delete the unfinished files of a killed process. Call this only while holding the lock of `folder`."""
    for path in folder.glob(pattern):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Keep other processes out of a run directory. Raises ValueError if another process already uses it."""
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"another process is using {folder}: wait for it, or set hydra.run.dir to another directory"
        ) from None
    try:
        remove_leftovers(folder, ".*.tmp")
        yield
    finally:
        lock.release()
