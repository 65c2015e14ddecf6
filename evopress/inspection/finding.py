"""What an inspection reports, and the reading of JSON that it needs."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from evopress.runtime.checksums import verify_checksum
from evopress.runtime.json_files import parse_json


class Unknown(ValueError):
    """Nothing that this program writes."""


@dataclass
class Finding:
    """What a path is. `facts` are shown in their order; `damages` say what is wrong and what to do."""

    kind: str
    path: Path
    facts: dict[str, str] = field(default_factory=dict)
    damages: list[str] = field(default_factory=list)
    unfinished: str = ""

    @property
    def state(self) -> str:
        return "DAMAGED" if self.damages else "unfinished" if self.unfinished else "whole"

    def __str__(self) -> str:
        rows = {**self.facts, "state": self.state, **({"to do": self.unfinished} if self.unfinished else {})}
        width = max(map(len, rows))
        lines = [f"{self.kind}: {self.path}", *(f"  {key:<{width}}  {value}" for key, value in rows.items())]
        return "\n".join(map(_printable, [*lines, *(f"  - {damage}" for damage in self.damages)]))


def read_object(path: Path, finding: Finding) -> dict:
    """The parsed JSON object; an empty one, and a damage, where it is not one."""
    try:
        content = parse_json(path.read_bytes())
        if isinstance(content, dict):
            return verify_checksum(content) if "sha256" in content else content
        finding.damages.append(f"{path.name} is not a JSON object")
    except FileNotFoundError:
        finding.damages.append(f"{path.name} is missing")
    except (OSError, ValueError) as error:
        finding.damages.append(f"{path.name} cannot be read ({error})")
    return {}


def in_words(settings: object) -> str:
    if not isinstance(settings, dict):
        return "unknown"
    rest = [f"{key}={value}" for key, value in settings.items() if key != "name"]
    return " ".join([*([str(settings["name"])] if "name" in settings else []), *rest])


def counted(labels: Iterable[str]) -> str:
    return ", ".join(f"{label} × {count}" for label, count in Counter(labels).items())


def _printable(line: str) -> str:
    """Without control characters, which a file could use to change what a terminal shows."""
    return "".join(character if character.isprintable() else "?" for character in line)
