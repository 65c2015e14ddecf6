"""Token windows for calibration, search, validation and test, disjoint and cached."""

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from math import ceil
from pathlib import Path
from random import Random

import torch
from jaxtyping import Int
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from evopress.data import sources
from evopress.runtime.config_class import config_class
from evopress.runtime.files import write_atomically

log = logging.getLogger(__name__)

SPLITS = ("calibration", "search", "validation", "test")
Windows = Int[Tensor, "windows time"]


@config_class
class Data:
    """Which text, and how much of it serves for what.

    `source` is pydoc, wikitext2, c4, fineweb_edu, or a local .txt, .jsonl or .parquet file or folder. `test_source`
    gives test and validation text where it is not to come from the same source. Numbers of tokens are rounded up to
    whole windows. With `bos` every window starts with the tokenizer's BOS token, which counts as part of it.
    """

    source: str
    test_source: str | None = None
    text_column: str = "text"
    window: int = Field(ge=2)
    calibration_tokens: int = Field(gt=0)
    search_tokens: int = Field(gt=0)
    validation_tokens: int = Field(gt=0)
    test_tokens: int = Field(gt=0)
    bos: bool = False

    def __post_init__(self) -> None:
        sources.check(self.source, "data.source")
        if self.test_source is not None:
            sources.check(self.test_source, "data.test_source")

    def num_windows(self, split: str) -> int:
        return ceil(getattr(self, f"{split}_tokens") / self.window)


@dataclass(frozen=True)
class Splits:
    """Windows of token ids, int64 (windows, time), no text in two of them. `hashes` are SHA-256 of the ids.

    `bos`: whether every window starts with the BOS token.
    """

    calibration: Windows
    search: Windows
    validation: Windows
    test: Windows
    hashes: dict[str, str]
    bos: bool = False


def load(data: Data, tokenizer: PreTrainedTokenizerBase, cache: Path) -> Splits:
    """All four splits. Raises ValueError when there is too little text, saying how much there is.

    From one text, calibration takes the first tokens, then search, validation and test follow. From several documents,
    each belongs to one split only. A `test_source` gives its first tokens to test and the next ones to validation.
    """
    plan: list[tuple[str, str, tuple[str, ...]]]  # (source, the source's own split, what is taken from it in order)
    if data.test_source is not None:
        first = (data.source, "train", SPLITS[:2])
        plan = [first, (data.test_source, _test_split(data.test_source), ("test", "validation"))]
    elif sources.own_split(data.source, "test"):
        validation, test = (sources.own_split(data.source, split) or "train" for split in ("validation", "test"))
        plan = [(data.source, "train", SPLITS[:2])]
        plan += (
            [(data.source, "test", ("test", "validation"))]
            if validation == test
            else [(data.source, "validation", ("validation",)), (data.source, "test", ("test",))]
        )
    else:
        plan = [(data.source, "train", SPLITS)]
    windows: dict[str, Windows] = {}
    for source, split, wanted in plan:
        windows |= _cached(data, source, split, wanted, tokenizer, cache)
    hashes = {name: sha256(tokens.numpy().tobytes()).hexdigest() for name, tokens in windows.items()}
    log.info(
        "tokens: %s; windows of %d, BOS %s",
        ", ".join(f"{name} {windows[name].numel()}" for name in SPLITS),
        data.window,
        "on" if data.bos else "off",
    )
    return Splits(**windows, hashes=hashes, bos=data.bos)


def load_test(source: str, data: Data, tokenizer: PreTrainedTokenizerBase, cache: Path) -> Windows:
    """The test windows of another source, with the window length and BOS of `data`."""
    sources.check(source, "eval.datasets")
    return _cached(data, source, _test_split(source), ("test",), tokenizer, cache)["test"]


def set_name(source: str) -> str:
    """What a source is called in tables: its own name, or that of its file."""
    return source if source == "pydoc" or source in sources.HUB else Path(source).stem


def minibatch(
    windows: Windows, num_tokens: int, rng: Random, excerpt: int | None = None, *, bos: bool = False
) -> Windows:
    """Random windows without repetition, `num_tokens` in all, rounded up to whole windows.

    Fewer tokens than a window are the start of one window; more than there are, all windows. With `excerpt`, so many
    neighbouring tokens from one random place, the same in all windows, stand for each, so that the same tokens come
    from more texts; with `bos` the first of them is that of the window.
    """
    count, length = minibatch_shape(len(windows), windows.shape[1], num_tokens, excerpt)
    chosen = windows[rng.sample(range(len(windows)), count)]
    start = rng.randint(0, windows.shape[1] - length) if excerpt else 0
    tokens = chosen[:, start : start + length]
    return torch.cat([chosen[:, :1], tokens[:, 1:]], 1) if bos else tokens


def minibatch_shape(num_windows: int, window: int, num_tokens: int, excerpt: int | None) -> tuple[int, int]:
    """How many of the windows a minibatch has, and how many tokens of each."""
    length = min(window, num_tokens, excerpt or num_tokens)
    return min(num_windows, ceil(num_tokens / length)), length


def warn_if_small(tokens: Windows, num_tokens: int) -> bool:
    """Say that a minibatch has fewer tokens than were asked for; whether it was said."""
    is_small = tokens.numel() < num_tokens
    if is_small:
        log.warning(
            "a minibatch of %d tokens is asked for but data.search_tokens gives only %d windows, %d tokens of each: "
            "raise data.search_tokens, or the excerpt of the search",
            num_tokens,
            *tokens.shape,
        )
    return is_small


def _test_split(source: str) -> str:
    return "test" if sources.own_split(source, "test") else "train"


def _cached(
    data: Data, source: str, split: str, wanted: tuple[str, ...], tokenizer: PreTrainedTokenizerBase, cache: Path
) -> dict[str, Windows]:
    """Windows of the `wanted` splits, from the cache where the same text was tokenised in the same way before."""
    counts = {name: data.num_windows(name) for name in wanted}
    depends_on = [
        sources.content_key(source),
        split,
        data.text_column,
        counts,
        data.window,
        data.bos,
        _identity(tokenizer),
    ]
    path = cache / "tokens" / f"{sha256(json.dumps(depends_on).encode()).hexdigest()[:24]}.safetensors"
    if path.exists():
        try:
            return _read(path)
        except (SafetensorError, ValueError) as error:
            log.warning("%s is damaged (%s) and will be made again", path, error)
    bos = _bos(data, tokenizer)
    documents = sources.documents(source, data.text_column, split)
    windows = _divide(
        documents, tokenizer, counts, data.window - len(bos), one_text=sources.is_one_text(source), source=source
    )
    starts = torch.tensor(bos, dtype=torch.int64)
    windows = {name: torch.cat([starts.expand(len(part), -1), part], 1) for name, part in windows.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, to_safetensors(windows, metadata={"sha256": _checksum(windows)}))
    return windows


def _read(path: Path) -> dict[str, Windows]:
    """Cached windows. Raises ValueError when they are not those that were written."""
    with safe_open(path, "pt") as file:
        windows = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        if (file.metadata() or {}).get("sha256") != _checksum(windows):
            raise ValueError("its content is not that of its sha256")
    return windows


def _checksum(windows: Mapping[str, Windows]) -> str:
    digest = sha256()
    for name, tokens in sorted(windows.items()):
        digest.update(f"{name} {tokens.dtype} {tuple(tokens.shape)}".encode())
        digest.update(tokens.numpy().tobytes())
    return digest.hexdigest()


def _bos(data: Data, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    if not data.bos:
        return []
    if tokenizer.bos_token_id is None:
        raise ValueError("data.bos is true but the tokenizer has no BOS token: set data.bos=false")
    return [tokenizer.bos_token_id]


def _identity(tokenizer: PreTrainedTokenizerBase) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return sha256(content.encode()).hexdigest()


def _divide(
    documents: Iterator[str],
    tokenizer: PreTrainedTokenizerBase,
    counts: dict[str, int],
    length: int,
    *,
    one_text: bool,
    source: str,
) -> dict[str, Windows]:
    """Cut (windows, length) for each split in turn; what a split leaves of a document is dropped unless `one_text`."""
    windows: dict[str, Windows] = {}
    ids: list[int] = []
    for name, count in counts.items():
        while len(ids) < count * length:
            document = next(documents, None)
            if document is None:
                raise ValueError(_too_little(windows, name, len(ids), counts, length, source))
            # A document is tokenised by itself; a blank line stands between two of them.
            ids += tokenizer(document if not ids else f"\n\n{document}", add_special_tokens=False)["input_ids"]
        windows[name] = torch.tensor(ids[: count * length], dtype=torch.int64).view(count, length)
        ids = ids[count * length :] if one_text else []
    return windows


def _too_little(
    windows: dict[str, Windows], short: str, found: int, counts: dict[str, int], length: int, source: str
) -> str:
    available = found + sum(part.numel() for part in windows.values())
    asked = ", ".join(f"data.{name}_tokens {count * length}" for name, count in counts.items())
    return (
        f"{source} has about {available} tokens, too few for {asked}: {short} is short of "
        f"{counts[short] * length - found}; lower these settings or give more text"
    )
