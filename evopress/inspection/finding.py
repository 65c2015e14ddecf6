"""The result of an inspection, and functions that read JSON and describe settings for it."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from evopress.runtime.checksums import verify_checksum
from evopress.runtime.json_files import parse_json


class UnknownFileError(ValueError):
    """The path is not something that evopress writes."""


@dataclass
class Finding:
    """The result of inspecting a path. `facts` are printed in order. `defects` say what is damaged.

    `unfinished` says how to continue. It is empty if nothing is left to do.
    """

    kind: str
    path: Path
    facts: dict[str, str] = field(default_factory=dict)
    defects: list[str] = field(default_factory=list)
    unfinished: str = ""

    @property
    def state(self) -> str:
        return "DAMAGED" if self.defects else "unfinished" if self.unfinished else "intact"

    def __str__(self) -> str:
        rows = {**self.facts, "state": self.state, **({"to do": self.unfinished} if self.unfinished else {})}
        width = max(map(len, rows))
        lines = [f"{self.kind}: {self.path}", *(f"  {key:<{width}}  {value}" for key, value in rows.items())]
        return "\n".join(map(_printable, [*lines, *(f"  - {defect}" for defect in self.defects)]))


def read_object(path: Path, finding: Finding) -> dict:
    """The object in a JSON file, without its checksum. Adds a defect and returns an empty dict if it cannot be read."""
    try:
        content = parse_json(path.read_bytes())
        if isinstance(content, dict):
            return verify_checksum(content) if "sha256" in content else content
        finding.defects.append(f"{path.name} is not a JSON object")
    except FileNotFoundError:
        finding.defects.append(f"{path.name} is missing")
    except (OSError, ValueError) as error:
        finding.defects.append(f"{path.name} cannot be read ({error})")
    return {}


def settings_in_words(settings: object) -> str:
    """{"name": "rtn", "bits": [2, 4]} → rtn bits=[2, 4]"""
    if not isinstance(settings, dict):
        return "unknown"
    pairs = [f"{key}={value}" for key, value in settings.items() if key != "name"]
    return " ".join([*([str(settings["name"])] if "name" in settings else []), *pairs])


def with_counts(labels: Iterable[str]) -> str:
    """Each label with the number of times it occurs: 4bit × 1, 3bit × 2"""
    return ", ".join(f"{label} × {count}" for label, count in Counter(labels).items())


def _printable(line: str) -> str:
    """Replace control characters. A file could use them to change what a terminal shows."""
    return "".join(character if character.isprintable() else "?" for character in line)
