"""Reads and writes JSON. Repeated keys and extreme nesting are errors."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from evopress.runtime.files import write_atomically


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write `content` as indented JSON, atomically."""
    write_atomically(path, json.dumps(content, indent=1) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    return parse_json(path.read_text(encoding="utf-8"))


def parse_json(text: str | bytes) -> Any:
    """Parse JSON. Raises ValueError if it is malformed, repeats a key or is nested too deeply."""
    try:
        return json.loads(text, object_pairs_hook=dict_of_unique)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def dict_of_unique(pairs: Iterable[tuple[str, object]]) -> dict[str, object]:
    """A dict of the pairs. Raises ValueError if a key is given twice."""
    result: dict[str, object] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"{key!r} is given twice")
        result[key] = value
    return result
