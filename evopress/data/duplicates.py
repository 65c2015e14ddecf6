"""Finds text that is in two splits: the same document, or the same window of tokens."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from math import ceil
from typing import NamedTuple

from evopress.data.windows import Windows

MIN_TOKENS = 64
"""If two splits have this many tokens in a row in common, the text is a copy and not a coincidence."""

NUM_COMPARED = 100
"""Characters at the start of a document that must be equal before the rest is compared."""


class TextStart(NamedTuple):
    """The part of a document that was read, without white space at its ends, and whether it is the whole document."""

    text: str
    is_whole: bool

    def agrees(self, other: "TextStart") -> bool:
        """Whether both may be the same document, because they are equal as far as both were read."""
        if self.is_whole and other.is_whole:
            return self.text == other.text
        shorter, longer = sorted((self, other), key=lambda start: len(start.text))
        return not shorter.is_whole and longer.text.startswith(shorter.text)


@dataclass
class DocumentsOfSplits:
    """Remembers the split of every document, and refuses a document that would be in two splits."""

    by_start: dict[str, list[tuple[TextStart, str, str]]] = field(default_factory=dict)

    def add(self, text: str, *, is_whole: bool, split: str, name: str) -> None:
        """Add the part of a document that was read. Raises ValueError if the document is in another split already."""
        start = TextStart(text.strip(), is_whole)
        if not start.text:
            return
        alike = self.by_start.setdefault(start.text[:NUM_COMPARED], [])
        for other, other_split, other_name in alike:
            if other_split != split and start.agrees(other):
                raise ValueError(
                    f"{name} has the same text as {other_name}, but no text may be in two splits, here {other_split} "
                    f"and {split}: remove one of the two"
                )
        alike.append((start, split, name))


def check_disjoint(splits: Mapping[str, Windows]) -> None:
    """Raise ValueError for text that is in two splits. The keys of `splits` describe them in the error.

    The splits are compared window by window. If windows have fewer than `MIN_TOKENS` tokens, several in a row are
    compared as one piece, because a few tokens may be equal by chance.
    """
    pieces = {name: _pieces(windows) for name, windows in splits.items()}
    for first, second in combinations(pieces, 2):
        seen = set(pieces[first])
        num_shared = sum(piece in seen for piece in pieces[second])
        if num_shared:
            raise ValueError(
                f"{num_shared} of {len(pieces[second])} pieces of {second} are also in {first}, each at least "
                f"{MIN_TOKENS} tokens long, but no text may be in two splits: remove the copies from the text, or "
                "change one of the two settings"
            )


def _pieces(windows: Windows) -> list[bytes]:
    """Token ids as bytes. Each piece has as many windows in a row as are needed for `MIN_TOKENS` tokens."""
    num_windows = ceil(MIN_TOKENS / windows.shape[1])
    whole = windows[: len(windows) // num_windows * num_windows]
    return [piece.numpy().tobytes() for piece in whole.view(-1, num_windows * windows.shape[1])]
