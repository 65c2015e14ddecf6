"""Files of token windows in the cache, with a checksum."""

import logging
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors

from evopress.data.windows import Windows, hash_of_windows
from evopress.runtime.files import write_atomically

log = logging.getLogger(__name__)


def read_windows(path: Path) -> dict[str, Windows] | None:
    """The windows by split. None if there is no such file or, with a warning, if it is damaged."""
    if not path.exists():
        return None
    try:
        return _read(path)
    except (SafetensorError, ValueError) as error:
        log.warning("%s is damaged (%s) and will be recreated", path, error)
        return None


def _read(path: Path) -> dict[str, Windows]:
    with safe_open(path, "pt") as file:
        windows = {split: file.get_tensor(split) for split in file.keys()}  # noqa: SIM118 - not a dict
        if (file.metadata() or {}).get("sha256") != _checksum(windows):
            raise ValueError("its content does not match its sha256")
    return windows


def write_windows(path: Path, windows: Mapping[str, Windows]) -> None:
    """Write the windows, complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, to_safetensors(dict(windows), metadata={"sha256": _checksum(windows)}))


def _checksum(windows: Mapping[str, Windows]) -> str:
    digest = sha256()
    for split, tokens in sorted(windows.items()):
        digest.update(f"{split} {hash_of_windows(tokens)}".encode())
    return digest.hexdigest()
