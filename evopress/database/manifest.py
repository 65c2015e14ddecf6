"""The manifest of a database: what the database depends on, and which blocks are finished."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evopress.runtime.checksums import verify_checksum, with_checksum
from evopress.runtime.files import write_atomically
from evopress.runtime.json_files import parse_json

FORMAT = 1

Identity = Mapping[str, object]
"""What the bytes of a database depend on, as JSON: model, calibration tokens, compressor and its settings."""

BlockEntry = dict[str, Any]
"""The manifest's entry of a finished block: file, bytes, sha256, errors and notes."""


def fingerprint(identity: Identity) -> str:
    """SHA-256 of the identity, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def read_manifest(path: Path, identity: Identity) -> dict[int, BlockEntry]:
    """The entries of the finished blocks, by block.

    Raises:
        ValueError: The manifest is damaged, has another format, or belongs to a database of another identity.
    """
    try:
        manifest = verify_checksum(parse_json(path.read_bytes()))
        if manifest["format"] != FORMAT:
            raise ValueError(f"its format is {manifest['format']}, but this version reads format {FORMAT}")
        recorded = manifest["fingerprint"]
        entries = {int(block): _checked(entry) for block, entry in manifest["blocks"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read as a manifest ({error}): delete {path.parent} to rebuild") from error
    if recorded != fingerprint(identity):
        raise ValueError(f"{path} is for another model, text or compressor: delete {path.parent}")
    return entries


def _checked(entry: BlockEntry) -> BlockEntry:
    """Returns the entry unchanged. Raises KeyError or TypeError if it is incomplete."""
    Path(entry["file"])
    for key in ("bytes", "sha256", "errors", "notes"):
        entry[key]
    return entry


def write_manifest(
    path: Path, identity: Identity, *, expected: Sequence[int], entries: Mapping[int, BlockEntry]
) -> None:
    """Replace the manifest atomically. `expected` are the blocks that the finished database will have."""
    manifest = {
        "format": FORMAT,
        "fingerprint": fingerprint(identity),
        "identity": identity,
        "expected": expected,
        "blocks": {str(block): entries[block] for block in sorted(entries)},
    }
    write_atomically(path, json.dumps(with_checksum(manifest), indent=1, sort_keys=True))
