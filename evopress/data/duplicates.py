"""Finds text that is in two splits: the same document, or the same window of tokens."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import NamedTuple

from evopress.data.windows import Windows

NUM_COMPARED = 100
"""Characters at the start of a document that must be equal before the rest is compared."""


class TextStart(NamedTuple):
    """As much of a document as was read, without white space at its ends, and whether that is all of it."""

    text: str
    is_whole: bool

    def agrees(self, other: "TextStart") -> bool:
        """Whether both may be the same document: as far as both were read, they are equal."""
        if self.is_whole and other.is_whole:
            return self.text == other.text
        shorter, longer = sorted((self, other), key=lambda start: len(start.text))
        return not shorter.is_whole and longer.text.startswith(shorter.text)


@dataclass
class DocumentsOfSplits:
    """Which split every document serves in, to refuse one that would serve in two."""

    by_start: dict[str, list[tuple[TextStart, str, str]]] = field(default_factory=dict)

    def add(self, text: str, *, is_whole: bool, split: str, name: str) -> None:
        """Add what was read of a document. Raises ValueError, with both names, for one that another split has."""
        start = TextStart(text.strip(), is_whole)
        if not start.text:
            return
        alike = self.by_start.setdefault(start.text[:NUM_COMPARED], [])
        for other, other_split, other_name in alike:
            if other_split != split and start.agrees(other):
                raise ValueError(
                    f"{name} has the same text as {other_name}, and no text may be in two splits, here {other_split} "
                    f"and {split}: remove one of the two"
                )
        alike.append((start, split, name))


def check_disjoint(splits: Mapping[str, Windows]) -> None:
    """Raises ValueError for a window that is in two splits. `splits` are by name, with the setting of their text."""
    contents = {name: [window.numpy().tobytes() for window in windows] for name, windows in splits.items()}
    for first, second in combinations(contents, 2):
        seen = set(contents[first])
        num_shared = sum(window in seen for window in contents[second])
        if num_shared:
            raise ValueError(
                f"{num_shared} of the {len(contents[second])} windows of {second} are also in {first}, and no text may "
                "be in two splits: remove the copies from the text, or change one of the two settings"
            )
