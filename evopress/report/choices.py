"""The level of each unit in a profile, read from `profile.json`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

MAX_LEVEL = 61
"""The search log writes a level as one character out of 62."""


@dataclass(frozen=True)
class Choice:
    """The level of one unit. `blocks` and `kind` come from the unit's name, such as model.layers.3.mlp.up_proj.

    `kept` orders the levels of any compressor. It is the bits, or the share of weights that is not removed.
    """

    unit: str
    blocks: tuple[int, ...]
    kind: str
    level: int
    label: str
    kept: float
    size_bytes: int


def choices_of(profile: Mapping) -> tuple[Choice, ...]:
    """The choices in a parsed `profile.json`. Raises ValueError, TypeError or KeyError if it is malformed.

    A sub-block that contains other units is left out: the units in it show whether it is dropped.
    """
    entries = profile.get("units", [])
    parents = {entry.get("inside") for entry in entries}
    choices = tuple(_choice(entry) for entry in entries if entry["unit"] not in parents)
    lowest = min((choice.kept for choice in choices), default=0.0)
    if lowest >= 0:
        return choices
    return tuple(replace(choice, kept=lowest - 1) if choice.label == "dropped" else choice for choice in choices)


def _choice(entry: Mapping) -> Choice:
    name, label, level = str(entry["unit"]), str(entry["label"]), int(entry["level"])
    if not 0 <= level <= MAX_LEVEL:
        raise ValueError(f"{name} has level {level}")
    matches = [re.fullmatch(r"(?:.*?\.)??(\d+)\.(.+)", part) for part in name.split("+")]
    positions = [(int(match[1]), match[2]) for match in matches if match]
    blocks = tuple(dict.fromkeys(block for block, _ in positions))
    kind = "+".join(dict.fromkeys(_short(kind) for _, kind in positions)) or name
    return Choice(name, blocks, kind, level, label, _kept(label, level), int(entry["size_bytes"]))


def _short(kind: str) -> str:
    """self_attn.q_proj → q"""
    return kind.rpartition(".")[2].removesuffix("_proj")


def _kept(label: str, level: int) -> float:
    """The bits or the share of weights that a level keeps, read from its label. Minus the index if it has no number."""
    if label in ("kept", "dropped"):
        return float(label == "kept")
    if match := re.fullmatch(r"(\d+(?:\.\d+)?) ?(bits?)?", label):
        return float(match[1]) if match[2] else 1 - float(match[1])
    return -float(level)
