"""Reads values from JSON and YAML files, which may contain anything."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

from evopress.runtime.checksums import verify_checksum
from evopress.runtime.json_files import parse_json

PARSE_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, yaml.YAMLError)
"""What reading a damaged file may raise."""


def load_object(path: Path) -> dict:
    """The object in a JSON file. If it has a checksum, the checksum must match."""
    return checked_object(parse_json(path.read_text(encoding="utf-8")))


def load_yaml(path: Path) -> object:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def checked_object(value: object) -> dict:
    """`value` as a dict without its checksum. Raises TypeError for another type, ValueError for a wrong checksum."""
    mapping = as_dict(value)
    return verify_checksum(mapping) if "sha256" in mapping else mapping


def as_dict(value: object) -> dict:
    """`value` itself. Raises TypeError if it is not a dict."""
    if not isinstance(value, dict):
        raise TypeError(f"expected an object, not {type(value).__name__}")
    return value


def dict_or_empty(value: object) -> dict:
    return value if isinstance(value, dict) else {}


def floats(value: object) -> dict[str, float]:
    """A dict of numbers. Raises TypeError or ValueError for anything else."""
    return {str(key): float(number) for key, number in as_dict(value).items()}


def flattened(tree: object, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Pairs of a dotted key and its value as JSON; a list stays one value."""
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            yield from flattened(value, f"{prefix}.{key}" if prefix else str(key))
    elif prefix:
        yield prefix, tree if isinstance(tree, str) else json.dumps(tree, default=str, ensure_ascii=False)
