"""Cuts the tokens of documents into windows."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256

import torch
from transformers import PreTrainedTokenizerBase

from evopress.data.windows import Windows


@dataclass(frozen=True)
class WindowFormat:
    """How windows are cut.

    `length` is in tokens and includes the `bos` tokens at the start of each window (none or one). What a split leaves
    of a document is dropped, unless `divides_documents`: then the next split starts with it.
    """

    length: int
    bos: tuple[int, ...]
    divides_documents: bool


def cut_windows(
    documents: Iterator[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    counts: Mapping[str, int],
    window_format: WindowFormat,
    source: str,
) -> dict[str, Windows]:
    """Windows int64 (count, length) of each split in turn. No more documents are tokenized than that takes.

    Raises ValueError, naming `source` and the settings, for too few tokens.
    """
    windows: dict[str, Windows] = {}
    length = window_format.length - len(window_format.bos)
    starts = torch.tensor(window_format.bos, dtype=torch.int64)
    ids: list[int] = []
    for split, count in counts.items():
        while len(ids) < count * length:
            document = next(documents, None)
            if document is None:
                settings = _settings_text(counts, length)
                missing = count * length - len(ids)
                available = len(ids) + length * sum(len(part) for part in windows.values())
                raise ValueError(
                    f"{source} has about {available} tokens, too few for {settings}: {split} is short of "
                    f"{missing}; lower these settings or give more text"
                )
            # Each document is tokenized by itself, with a blank line between two of them.
            ids += tokenizer(document if not ids else f"\n\n{document}", add_special_tokens=False)["input_ids"]
        body = torch.tensor(ids[: count * length], dtype=torch.int64).view(count, length)
        windows[split] = torch.cat([starts.expand(count, -1), body], 1)
        ids = ids[count * length :] if window_format.divides_documents else []
    return windows


def _settings_text(counts: Mapping[str, int], length: int) -> str:
    return ", ".join(f"data.{split}_tokens {count * length}" for split, count in counts.items())


def bos_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The BOS token. Raises ValueError for a tokenizer without one."""
    if tokenizer.bos_token_id is None:
        raise ValueError("data.bos is true but the tokenizer has no BOS token: set data.bos=false")
    return (tokenizer.bos_token_id,)


def tokenizer_identity(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of everything that decides how a tokenizer splits text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return sha256(content.encode()).hexdigest()
