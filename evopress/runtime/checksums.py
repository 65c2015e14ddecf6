"""Checksums inside JSON files and over folders. A file without its checksum counts as damaged."""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evopress.runtime.json_files import read_json, write_json

log = logging.getLogger(__name__)

CHECKSUMS = "checksums.json"
"""The file in a folder that has the SHA-256 of all its other files."""


def with_checksum(content: Mapping[str, object]) -> dict[str, object]:
    """`content` plus its SHA-256, so that `verify_checksum` detects changes that are still valid JSON."""
    return {**content, "sha256": _sha256_of_content(content)}


def verify_checksum(content: object) -> dict[str, Any]:
    """The content without its checksum. Raises ValueError if the checksum is missing or does not match."""
    if not isinstance(content, dict):
        raise ValueError("it is not an object")
    if "sha256" not in content:
        raise ValueError("it has no sha256")
    if content["sha256"] != _sha256_of_content(content):
        raise ValueError("its content does not match its sha256")
    return {key: value for key, value in content.items() if key != "sha256"}


def _sha256_of_content(content: Mapping[str, object]) -> str:
    hashed = {key: value for key, value in content.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()


def read_json_if_intact(path: Path) -> dict[str, Any]:
    """The object in a JSON file that can be recreated. Empty if the file is missing or damaged; damage is a warning."""
    if not path.exists():
        return {}
    try:
        return verify_checksum(read_json(path))
    except ValueError as error:
        log.warning("%s is damaged (%s) and will be recreated", path, error)
        return {}


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_checksums(folder: Path) -> None:
    """Record the SHA-256 of every file in a finished folder, in `CHECKSUMS`."""
    files = {path.name: sha256_of(path) for path in sorted(folder.iterdir())}
    write_json(folder / CHECKSUMS, with_checksum({"files": files}))


def folder_is_intact(folder: Path) -> bool:
    """Whether a folder holds exactly the files that `write_checksums` recorded, unchanged."""
    try:
        recorded = verify_checksum(read_json(folder / CHECKSUMS)).get("files")
    except (OSError, ValueError):
        return False
    return recorded == {path.name: sha256_of(path) for path in folder.iterdir() if path.name != CHECKSUMS}
