"""The texts that the results of a run are measured on: their names, their sizes, and how they are tokenised."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evopress.data.settings import Data
from evopress.data.sources import check_source, check_whole_test_split, text_source


@dataclass(frozen=True)
class TestSet:
    """A source whose test text is measured.

    `num_tokens` is how many tokens are used, rounded up to whole windows; None: all. `name` is its name in tables,
    which no other test set of the run has. `setting` is the key that sets `num_tokens`.
    """

    __test__ = False  # tells pytest that this is not a test class

    name: str
    source: str
    num_tokens: int | None
    setting: str

    def about_tokens(self) -> int:
        """Roughly how many tokens it has."""
        return self.num_tokens or text_source(self.source).about_tokens("test") or 0

    def convention(self) -> str:
        """Describe in words how its text is turned into tokens."""
        source = text_source(self.source)
        return source.convention(source.split_for("test"))


def list_test_sets(data: Data, sources: Sequence[str], num_tokens: int | None) -> list[TestSet]:
    """The test split of `data`, then the `sources` with `num_tokens` each.

    Raises ValueError for a source that does not exist, that is named twice, or that is too large to use all of it.
    """
    for index, source in enumerate(sources):
        check_source(source, "eval.datasets")
        if _place(source) in [_place(other) for other in (data.source_of("test"), *sources[:index])]:
            raise ValueError(f"eval.datasets names {source!r}, which is already a test text of this run: leave it out")
        if num_tokens is None:
            check_whole_test_split(source, "eval.test_tokens")
    all_sources = [data.source_of("test"), *sources]
    amounts = [(data.test_tokens, "data.test_tokens"), *[(num_tokens, "eval.test_tokens")] * len(sources)]
    names = unique_names(all_sources)
    return [TestSet(name, source, *amount) for name, source, amount in zip(names, all_sources, amounts, strict=True)]


def check_text_column(data: Data, sources: Sequence[str]) -> None:
    """Raise ValueError if `data.text_column` is set but none of the texts of a run has columns."""
    all_sources = [*(data.source_of(split) for split in ("calibration", "validation", "test")), *sources]
    if data.text_column != "text" and not any(text_source(source).has_columns for source in all_sources):
        raise ValueError(
            f"data.text_column is {data.text_column!r}, but it is only for .jsonl and .parquet files, not for "
            f"{' and '.join(dict.fromkeys(all_sources))}: leave data.text_column=text"
        )


def unique_names(sources: Sequence[str]) -> list[str]:
    """Names of the sources for tables. Files that have the same name get their folder in front."""
    candidates = [text_source(source).names for source in sources]
    names = [shortest for shortest, *_ in candidates]
    for length in range(1, max(map(len, candidates))):
        count = Counter(names)
        names = [
            name if count[name] == 1 else longer[min(length, len(longer) - 1)]
            for name, longer in zip(names, candidates, strict=True)
        ]
    return names


def _place(source: str) -> str:
    """The full path of a local source, which is the same for two spellings of one path."""
    return str(Path(source).resolve()) if Path(source).exists() else source
