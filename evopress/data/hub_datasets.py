"""The data sets of the hub that have a short name, and how they are read."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class HubDataset:
    """A data set of the hub. `splits` says which of its splits serves as train, validation and test."""

    repository: str
    configuration: str
    splits: Mapping[str, str]


HUB_DATASETS: Mapping[str, HubDataset] = {
    "wikitext2": HubDataset(
        "Salesforce/wikitext",
        "wikitext-2-raw-v1",
        {"train": "train", "validation": "validation", "test": "test"},
    ),
    "c4": HubDataset("allenai/c4", "en", {"train": "train", "validation": "validation", "test": "validation"}),
    "fineweb_edu": HubDataset(
        "HuggingFaceFW/fineweb-edu",
        "sample-10BT",
        {"train": "train", "validation": "train", "test": "train"},
    ),
}
"""By the name in `data.source`."""


def read_documents(name: str, dataset: HubDataset, split: str) -> Iterator[str]:
    """Stream the documents of a split. Raises ValueError for a hub that cannot be reached."""
    from datasets import load_dataset  # importing it takes seconds, and local text does not need it

    try:
        rows = load_dataset(dataset.repository, dataset.configuration, split=dataset.splits[split], streaming=True)
        for row in rows:
            if row["text"]:
                yield row["text"]
    except (OSError, ConnectionError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"data.source is {name!r} but {dataset.repository} cannot be read from the hub "
            f"({str(error).splitlines()[0]}): check the network, or use data=pydoc, or data=text data.source=FILE"
        ) from error
