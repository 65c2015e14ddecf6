"""The settings of the data: which text, how much of it serves for what, and the length of the windows."""

from math import ceil

from pydantic import Field

from evopress.data.sources import check_source, check_whole_test_split
from evopress.runtime.config_class import UserPath, config_class


@config_class
class Data:
    """Which text to use, and how much of it for what.

    Attributes:
        source: pydoc, wikitext2, c4, fineweb_edu, or a local .txt, .jsonl or .parquet file, or a folder of them.
        validation_source: Text for validation, where it should come from another source.
        test_source: Text for test, where it should come from another source.
        text_column: The column of .jsonl and .parquet files that contains the text, or a list of chat messages.
        window: Tokens per window.
        calibration_tokens: For the level database. Like the other three, rounded up to whole windows.
        search_tokens: The pool from which the minibatches of the search are drawn.
        validation_tokens: For the sanity check of the dense model, and for what is tuned.
        test_tokens: For the final comparison. None takes all whole windows that the test text has.
        bos: Start every window with the tokenizer's BOS token, which counts as part of the window.
        calibration_seed: None calibrates on the first windows. A seed draws other windows, from those and three times
            as many that follow all other splits (fewer where the text ends). The other splits stay the same.
    """

    source: UserPath
    validation_source: UserPath | None = None
    test_source: UserPath | None = None
    text_column: str = "text"
    window: int = Field(ge=2)
    calibration_tokens: int = Field(gt=0)
    search_tokens: int = Field(gt=0)
    validation_tokens: int = Field(gt=0)
    test_tokens: int | None = Field(gt=0)
    bos: bool = False
    calibration_seed: int | None = None

    def __post_init__(self) -> None:
        for key in ("source", "validation_source", "test_source"):
            source = getattr(self, key)
            if source is not None:
                check_source(source, f"data.{key}")
        if self.test_tokens is None:
            check_whole_test_split(self.source_of("test"), "data.test_tokens")

    def source_of(self, split: str) -> str:
        """The source of the text of a split."""
        other = {"validation": self.validation_source, "test": self.test_source}.get(split)
        return self.source if other is None else other

    def num_windows(self, split: str) -> int:
        """How many windows a split has; 1 for a test split that is taken whole, which has at least that."""
        return ceil((getattr(self, f"{split}_tokens") or 1) / self.window)
