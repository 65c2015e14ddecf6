"""Cuts the tokens of documents into windows."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain
from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from evopress.data.documents import Document
from evopress.data.duplicates import DocumentsOfSplits
from evopress.data.windows import Windows

MARGIN_TOKENS = 512
"""At this distance from a cut in a text, tokens are certain to be the same as in the whole text."""

CHARACTERS_PER_TOKEN = 6
"""A first guess at how much text is needed for a number of tokens."""


@dataclass(frozen=True)
class WindowFormat:
    """How windows are cut.

    `length` is in tokens and includes the `bos` tokens at the start of each window (none or one). If a split does not
    use all of a document, the rest is dropped. With `divides_documents`, the next split starts with the rest instead.
    """

    length: int
    bos: tuple[int, ...]
    divides_documents: bool

    @property
    def text_length(self) -> int:
        """Tokens of text in a window."""
        return self.length - len(self.bos)


class Amount(NamedTuple):
    """How many windows a split gets: as many as there are, from `least` to `most`. None means no upper limit.

    `setting` is the key that sets these numbers, for errors.
    """

    least: int
    most: int | None
    setting: str


class Start(NamedTuple):
    """The first tokens of a text, and the text that was read to get them. `is_whole` if that is the whole text."""

    ids: list[int]
    text: str
    is_whole: bool


def cut_windows(
    documents: Iterator[Document],
    tokenizer: PreTrainedTokenizerBase,
    *,
    amounts: Mapping[str, Amount],
    window_format: WindowFormat,
    source: str,
) -> dict[str, Windows]:
    """Cut windows, int64 (count, length), for one split after the other. Reads no more text than they need.

    Raises ValueError, naming `source` and the settings, if there are too few tokens or a document is in two splits.
    """
    windows: dict[str, Windows] = {}
    length = window_format.text_length
    documents_of_splits = DocumentsOfSplits()
    ids: list[int] = []
    for split, amount in amounts.items():
        wanted = _num_tokens([amount], length)
        is_divided = window_format.divides_documents
        usable = _num_tokens(list(amounts.values())[len(windows) :], length) if is_divided else wanted
        while wanted is None or len(ids) < wanted:
            document = next(documents, None)
            if document is None:
                break
            # Each document is tokenised by itself, with a blank line between two of them.
            pieces = chain(["\n\n"] if ids else [], document.pieces(tokenizer))
            start = first_ids(pieces, tokenizer, None if usable is None else usable - len(ids))
            documents_of_splits.add(start.text, is_whole=start.is_whole, split=split, name=document.name)
            ids += start.ids
        count = (len(ids) if wanted is None else min(len(ids), wanted)) // length
        if count < amount.least:
            available = len(ids) + length * sum(len(part) for part in windows.values())
            missing = amount.least * length - len(ids)
            shortage = _shortage(source, amounts, length, split=split, missing=missing, available=available)
            raise ValueError(shortage if is_divided else f"{shortage}. Each document is used in one split only")
        windows[split] = _as_windows(ids[: count * length], count, window_format)
        ids = ids[count * length :] if is_divided else []
    return windows


def _as_windows(ids: list[int], count: int, window_format: WindowFormat) -> Windows:
    starts = torch.tensor(window_format.bos, dtype=torch.int64)
    body = torch.tensor(ids, dtype=torch.int64).view(count, window_format.text_length)
    return torch.cat([starts.expand(count, -1), body], 1)


def first_ids(pieces: Iterable[str], tokenizer: PreTrainedTokenizerBase, num_tokens: int | None) -> Start:
    """The first `num_tokens` tokens of a text, or fewer if it is shorter; None: all of them.

    The result is the same as if the whole text were tokenised, but only the start of the text is read. A cut in a text
    changes only the tokens close to the cut. So the start that is tokenised has `MARGIN_TOKENS` more tokens than are
    used.
    """
    rest = iter(pieces)
    text = ""
    size = None if num_tokens is None else CHARACTERS_PER_TOKEN * (num_tokens + MARGIN_TOKENS)
    while True:
        text, is_whole = _extended(text, rest, size)
        start = text if size is None else text[:size]
        ids = tokenizer(start, add_special_tokens=False)["input_ids"]
        if is_whole and len(start) == len(text):
            return Start(ids[:num_tokens], start, is_whole=True)
        assert num_tokens is not None and size is not None
        if len(ids) >= num_tokens + MARGIN_TOKENS:
            return Start(ids[:num_tokens], start, is_whole=False)
        size *= 2


def _extended(text: str, rest: Iterator[str], size: int | None) -> tuple[str, bool]:
    """The text with more pieces, more than `size` characters if there are as many, and whether it is complete."""
    pieces = [text]
    num_characters = len(text)
    while size is None or num_characters <= size:
        piece = next(rest, None)
        if piece is None:
            return "".join(pieces), True
        pieces.append(piece)
        num_characters += len(piece)
    return "".join(pieces), False


def _num_tokens(amounts: list[Amount], length: int) -> int | None:
    """How many tokens of text several splits can use; None: all there are."""
    limits = [amount.most for amount in amounts]
    return None if None in limits else length * sum(limit for limit in limits if limit is not None)


def _shortage(
    source: str, amounts: Mapping[str, Amount], length: int, *, split: str, missing: int, available: int
) -> str:
    settings = ", ".join(f"{amount.setting} {amount.least * length}" for amount in amounts.values())
    all_there_is = f", set {amounts[split].setting}=null for all there is," if split == "test" else ""
    return (
        f"{source} has about {available} tokens, too few for {settings}: {split} is short of {missing}; lower these "
        f"settings{all_there_is} or give more text"
    )


def bos_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The BOS token. Raises ValueError if the tokenizer has none."""
    if tokenizer.bos_token_id is None:
        raise ValueError("data.bos is true but the tokenizer has no BOS token: set data.bos=false")
    return (tokenizer.bos_token_id,)


def tokenizer_identity(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of everything that decides how a tokenizer splits text and writes conversations."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    template = json.dumps(tokenizer.chat_template, sort_keys=True)
    return sha256(f"{content}{template}".encode()).hexdigest()
