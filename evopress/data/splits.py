"""The token windows for calibration, search, validation and test: disjoint, and tokenised once."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from math import ceil
from pathlib import Path
from random import Random

import torch
from transformers import PreTrainedTokenizerBase

from evopress.data.duplicates import check_disjoint
from evopress.data.settings import Data
from evopress.data.sources import check_source, text_source
from evopress.data.tokenization import Amount, WindowFormat, bos_tokens, cut_windows, tokenizer_identity
from evopress.data.window_files import read_windows, write_windows
from evopress.data.windows import Windows, hash_of_windows
from evopress.runtime.versions import library_versions

log = logging.getLogger(__name__)

SPLITS = ("calibration", "search", "validation", "test")

FURTHER_CALIBRATION = "further calibration"
"""Additional windows that `data.calibration_seed` can draw."""

MAX_FURTHER_RATIO = 3
"""The largest number of these windows, relative to the number of calibration windows."""


@dataclass(frozen=True)
class Splits:
    """Token ids of the four splits, int64 (windows, time). No text is in two of them.

    `hashes` has the `hash_of_windows` of every split. `bos` says whether every window starts with the BOS token.
    """

    calibration: Windows
    search: Windows
    validation: Windows
    test: Windows
    hashes: Mapping[str, str]
    bos: bool = False


@dataclass(frozen=True)
class Extract:
    """The splits that are cut, one after the other, from one split of a source ("train", "validation" or "test").

    `setting` is the key that names the source.
    """

    setting: str
    source: str
    source_split: str
    amounts: Mapping[str, Amount]


def load_splits(data: Data, tokenizer: PreTrainedTokenizerBase, cache: Path) -> Splits:
    """Load all four splits.

    One long text is divided in the order calibration, search, validation, test. In a list of documents, each document
    belongs to one split only. If `data.test_source` is set, test comes before validation in a text that serves both.

    Raises ValueError if there is too little text (and says how much there is), and for the same text in two splits.
    """
    windows: dict[str, Windows] = {}
    for extract in extracts_of(data):
        windows |= _windows_of(extract, data, tokenizer, cache)
    if data.calibration_seed is not None:
        pool = torch.cat([windows["calibration"], windows.pop(FURTHER_CALIBRATION)])
        drawn = Random(data.calibration_seed).sample(range(len(pool)), len(windows["calibration"]))
        windows["calibration"] = pool[sorted(drawn)]
    check_disjoint({_description(split, data): windows[split] for split in SPLITS})
    hashes = {split: hash_of_windows(windows[split]) for split in windows}
    log.info(
        "tokens: %s; windows of %d, BOS %s",
        ", ".join(f"{split} {windows[split].numel()}" for split in SPLITS),
        data.window,
        "on" if data.bos else "off",
    )
    return Splits(**windows, hashes=hashes, bos=data.bos)


def load_test_windows(
    name: str, data: Data, num_tokens: int | None, *, tokenizer: PreTrainedTokenizerBase, cache: Path
) -> Windows:
    """The first `num_tokens` of the test text of another source, rounded up to whole windows; None: all whole windows.

    The windows have the length and BOS of `data`. Raises ValueError if there is too little text.
    """
    check_source(name, "eval.datasets")
    split = text_source(name).split_for("test")
    count = None if num_tokens is None else ceil(num_tokens / data.window)
    extract = Extract("eval.datasets", name, split, {"test": Amount(count or 1, count, "eval.test_tokens")})
    return _windows_of(extract, data, tokenizer, cache)["test"]


def check_test_windows(splits: Splits, test_sets: Mapping[str, Windows]) -> None:
    """Raise ValueError if text of a test set is also in the calibration, search or validation split."""
    for name, windows in test_sets.items():
        for split in SPLITS[:3]:
            both = {f"the {split} split": getattr(splits, split), f"the test text {name} (eval.datasets)": windows}
            check_disjoint(both)


def extracts_of(data: Data) -> list[Extract]:
    """List which splits are cut from which split of which source, in the order in which they are cut."""
    order = SPLITS if data.test_source is None else ("calibration", "search", "test", "validation")
    splits_of: dict[tuple[str, str], list[str]] = {}
    for split in order:
        source = data.source_of(split)
        part = text_source(source).split_for(split if split in ("validation", "test") else "train")
        splits_of.setdefault((source, part), []).append(split)
    return [
        Extract(_setting(splits[0], data), source, part, _amounts(splits, data))
        for (source, part), splits in splits_of.items()
    ]


def _amounts(splits: list[str], data: Data) -> dict[str, Amount]:
    amounts = {}
    for split in splits:
        count = data.num_windows(split)
        takes_all = split == "test" and data.test_tokens is None
        amounts[split] = Amount(count, None if takes_all else count, f"data.{split}_tokens")
    if data.calibration_seed is not None and "calibration" in splits:
        most = MAX_FURTHER_RATIO * amounts["calibration"].least
        amounts[FURTHER_CALIBRATION] = Amount(1, most, "more for data.calibration_seed")
    return amounts


def _setting(split: str, data: Data) -> str:
    """The key that names the source of a split."""
    key = f"data.{split}_source"
    return key if split in ("validation", "test") and data.source_of(split) != data.source else "data.source"


def _description(split: str, data: Data) -> str:
    return f"the {split} split ({_setting(split, data)})"


def _windows_of(extract: Extract, data: Data, tokenizer: PreTrainedTokenizerBase, cache: Path) -> dict[str, Windows]:
    """Windows by split. They come from the cache if the same text was tokenised with the same settings before."""
    source = text_source(extract.source)
    is_one_text = source.is_one_text(extract.source_split)
    depends_on = [
        source.content_key(),
        extract.source_split,
        is_one_text,
        data.text_column,
        {split: amount[:2] for split, amount in extract.amounts.items()},
        data.window,
        data.bos,
        tokenizer_identity(tokenizer),
        library_versions("evopress", "tokenizers", "transformers"),
    ]
    path = cache / "tokens" / f"{sha256(json.dumps(depends_on).encode()).hexdigest()[:24]}.safetensors"
    windows = read_windows(path)
    if windows is not None:
        return windows
    bos = bos_tokens(tokenizer) if data.bos else ()
    try:
        windows = cut_windows(
            source.documents(data.text_column, extract.source_split),
            tokenizer,
            amounts=extract.amounts,
            window_format=WindowFormat(data.window, bos, divides_documents=is_one_text),
            source=extract.source,
        )
    except ValueError as error:
        raise ValueError(f"{extract.setting}: {error}") from error
    write_windows(path, windows)
    return windows
