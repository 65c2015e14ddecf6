"""Units grouped by their level, and the bytes of each group, for bar charts."""

from collections.abc import Iterable
from dataclasses import dataclass

from evopress.report.choices import Choice
from evopress.report.record import Run

MAX_BARS = 12
"""A bar chart shows at most this many shares one by one; more are grouped by tenths."""

DENSE_UNITS = "16-bit weights"
FIXED = "embeddings, norms and other"


@dataclass(frozen=True)
class LevelGroup:
    """Units shown as one bar; `kept` is their mean."""

    label: str
    kept: float
    members: tuple[Choice, ...]


def level_groups(choices: Iterable[Choice]) -> list[LevelGroup]:
    """Units by level, the least compressed first. If there are too many shares, units are grouped by tenths instead."""
    choices = tuple(choices)
    has_shares = all(0 <= choice.kept <= 1 for choice in choices)
    by_tenths = len({choice.label for choice in choices}) > MAX_BARS and has_shares
    groups: dict[str, list[Choice]] = {}
    for choice in sorted(choices, key=lambda choice: -choice.kept):
        groups.setdefault(_tenth(choice) if by_tenths else choice.label, []).append(choice)
    return [
        LevelGroup(label, sum(choice.kept for choice in members) / len(members), tuple(members))
        for label, members in groups.items()
    ]


def _tenth(choice: Choice) -> str:
    low = min(int(round(1 - choice.kept, 6) * 10), 9)
    return f"{low / 10:.1f} to {(low + 1) / 10:.1f}"


def byte_parts(run: Run) -> list[tuple[str, str, int]]:
    """(candidate, part, bytes); the parts of a candidate add up to its size. Empty if sizes are unknown."""
    dense, searched = run.candidates.get("dense"), run.candidates.get("searched")
    if not dense or not searched or not run.choices:
        return []
    fixed = searched.size_bytes - sum(choice.size_bytes for choice in run.choices)
    sizes = [(group.label, sum(choice.size_bytes for choice in group.members)) for group in level_groups(run.choices)]
    parts = [("dense", FIXED, fixed), ("dense", DENSE_UNITS, dense.size_bytes - fixed), ("searched", FIXED, fixed)]
    return parts + [("searched", label, size) for label, size in sizes if size]
