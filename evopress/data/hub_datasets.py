"""The data sets of the Hugging Face hub that have a short name here, and how they are read."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice

from evopress.data.documents import Document

TRAIN = "train"


@dataclass(frozen=True)
class HubSplit:
    """Rows of a split of a data set.

    Attributes:
        split: The name of the split on the hub.
        about_tokens: Roughly how many tokens the rows have, within about 20 %; None: more than anyone needs.
        file: Use only the rows of this file of the repository.
        first_row: Leave out the rows before this one.
        num_rows: Use only this many rows.
        separator: Joins all rows, even empty ones, into one text. None: every row is a document.
    """

    split: str
    about_tokens: int | None = None
    file: str | None = None
    first_row: int = 0
    num_rows: int | None = None
    separator: str | None = None


@dataclass(frozen=True)
class HubDataset:
    """A data set of the hub. `splits` says which rows serve as train, validation and test."""

    repository: str
    configuration: str
    splits: Mapping[str, HubSplit]
    column: str = "text"


FIRST_C4_SHARD = "en/c4-validation.00000-of-00008.json.gz"

NUM_C4_DOCUMENTS = 1100
"""How many documents of C4 are used for perplexity in GPTQ, SparseGPT and many later papers."""

HUB_DATASETS: Mapping[str, HubDataset] = {
    "wikitext2": HubDataset(
        "Salesforce/wikitext",
        "wikitext-2-raw-v1",
        {
            TRAIN: HubSplit("train", 2_500_000, separator="\n\n"),
            "validation": HubSplit("validation", 260_000, separator="\n\n"),
            "test": HubSplit("test", 300_000, separator="\n\n"),
        },
    ),
    "c4": HubDataset(
        "allenai/c4",
        "en",
        {
            TRAIN: HubSplit("train"),
            "validation": HubSplit(
                "validation", 20_000_000, FIRST_C4_SHARD, first_row=NUM_C4_DOCUMENTS, separator="\n\n"
            ),
            "test": HubSplit("validation", 530_000, FIRST_C4_SHARD, num_rows=NUM_C4_DOCUMENTS, separator="\n\n"),
        },
    ),
    "fineweb_edu": HubDataset(
        "HuggingFaceFW/fineweb-edu", "sample-10BT", dict.fromkeys((TRAIN, "validation", "test"), HubSplit("train"))
    ),
}
"""The keys are the names for `data.source`.

Source: for the rows of WikiText-2 and C4, `datautils.py` of GPTQ and SparseGPT.
"""


def read_documents(dataset: HubDataset, split: HubSplit) -> Iterator[Document]:
    """Stream the documents of a split. Raises ValueError if the hub cannot be reached.

    A row that repeats the text of an earlier row is left out, so that the same text is never in two splits.
    """
    name = f"the {split.split} split of {dataset.repository}"
    if split.separator is not None:
        yield Document(name, _joined(_rows(dataset, split), split.separator))
        return
    seen = set()
    for number, text in enumerate(_rows(dataset, split), start=1 + split.first_row):
        digest = sha256(text.encode()).digest()
        if text and digest not in seen:
            seen.add(digest)
            yield Document(f"row {number} of {name}", (text,))


def _joined(rows: Iterator[str], separator: str) -> Iterator[str]:
    yield next(rows, "")
    for row in rows:
        yield separator + row


def _rows(dataset: HubDataset, split: HubSplit) -> Iterator[str]:
    from datasets import load_dataset  # importing it takes seconds, and local text does not need it

    source = {"data_files": {split.split: split.file}} if split.file else {"name": dataset.configuration}
    last_row = None if split.num_rows is None else split.first_row + split.num_rows
    try:
        rows = load_dataset(dataset.repository, split=split.split, streaming=True, **source)
        for row in islice(rows, split.first_row, last_row):
            yield row[dataset.column]
    except Exception as error:  # the libraries raise errors of many types if the hub cannot be reached
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{dataset.repository} cannot be read from the hub ({reason}): check the network, or use data=pydoc, or "
            "data=text data.source=FILE"
        ) from error
