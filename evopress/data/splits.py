"""The token windows for calibration, search, validation and test: disjoint, and tokenized once."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from evopress.data.settings import Data
from evopress.data.sources import check_source, text_source
from evopress.data.tokenization import WindowFormat, bos_tokens, cut_windows, tokenizer_identity
from evopress.data.window_files import read_windows, write_windows
from evopress.data.windows import Windows

log = logging.getLogger(__name__)

SPLITS = ("calibration", "search", "validation", "test")


@dataclass(frozen=True)
class Splits:
    """Token ids of the four splits, int64 (windows, time). No text is in two of them.

    `hashes` are the SHA-256 of the ids, by split. `bos`: whether every window starts with the BOS token.
    """

    calibration: Windows
    search: Windows
    validation: Windows
    test: Windows
    hashes: Mapping[str, str]
    bos: bool = False


@dataclass(frozen=True)
class Extract:
    """The splits that are cut, one after the other, from one split of a source ("train", "validation" or "test")."""

    source: str
    source_split: str
    splits: tuple[str, ...]


def load_splits(data: Data, tokenizer: PreTrainedTokenizerBase, cache: Path) -> Splits:
    """All four splits. Raises ValueError when there is too little text, saying how much there is.

    One long text is divided in the order calibration, search, validation, test. Of a list of documents, each belongs
    to one split only. A `test_source` gives its first tokens to test and the next ones to validation.
    """
    windows: dict[str, Windows] = {}
    for extract in extracts_of(data):
        windows |= _windows_of(extract, data, tokenizer, cache)
    hashes = {split: sha256(tokens.numpy().tobytes()).hexdigest() for split, tokens in windows.items()}
    log.info(
        "tokens: %s; windows of %d, BOS %s",
        ", ".join(f"{split} {windows[split].numel()}" for split in SPLITS),
        data.window,
        "on" if data.bos else "off",
    )
    return Splits(**windows, hashes=hashes, bos=data.bos)


def load_test_windows(name: str, data: Data, tokenizer: PreTrainedTokenizerBase, cache: Path) -> Windows:
    """The test windows of another source, with the window length and BOS of `data`."""
    check_source(name, "eval.datasets")
    return _windows_of(Extract(name, _test_split(name), ("test",)), data, tokenizer, cache)["test"]


def dataset_name(source: str) -> str:
    """What a source is called in tables: its name, or that of its file."""
    return text_source(source).label


def extracts_of(data: Data) -> list[Extract]:
    """Which splits come from which split of which source.

    A source with its own test and validation splits gives those; where one split serves as both, test comes first.
    """
    training = Extract(data.source, "train", ("calibration", "search"))
    if data.test_source is not None:
        return [training, Extract(data.test_source, _test_split(data.test_source), ("test", "validation"))]
    source = text_source(data.source)
    if source.split_for("test") == "train":
        return [Extract(data.source, "train", SPLITS)]
    if source.split_for("test") == source.split_for("validation"):
        return [training, Extract(data.source, "test", ("test", "validation"))]
    return [training, *(Extract(data.source, split, (split,)) for split in ("validation", "test"))]


def _test_split(source: str) -> str:
    return "train" if text_source(source).split_for("test") == "train" else "test"


def _windows_of(extract: Extract, data: Data, tokenizer: PreTrainedTokenizerBase, cache: Path) -> dict[str, Windows]:
    """Windows by split, from the cache if the same text was tokenized with the same settings before."""
    source = text_source(extract.source)
    counts = {split: data.num_windows(split) for split in extract.splits}
    depends_on = [
        source.content_key(),
        extract.source_split,
        data.text_column,
        counts,
        data.window,
        data.bos,
        tokenizer_identity(tokenizer),
    ]
    path = cache / "tokens" / f"{sha256(json.dumps(depends_on).encode()).hexdigest()[:24]}.safetensors"
    windows = read_windows(path)
    if windows is None:
        bos = bos_tokens(tokenizer) if data.bos else ()
        windows = cut_windows(
            source.documents(data.text_column, extract.source_split),
            tokenizer,
            counts=counts,
            window_format=WindowFormat(data.window, bos, divides_documents=source.is_one_text),
            source=extract.source,
        )
        write_windows(path, windows)
    return windows
