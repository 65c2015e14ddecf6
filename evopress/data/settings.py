"""The settings of the data: which text, how much of it serves for what, and the length of the windows."""

from math import ceil

from pydantic import Field

from evopress.data.sources import check_source
from evopress.runtime.config_class import config_class


@config_class
class Data:
    """Which text to use, and how much of it for what.

    Attributes:
        source: pydoc, wikitext2, c4, fineweb_edu, or a local .txt, .jsonl or .parquet file, or a folder of them.
        test_source: Text for test and validation, where it should come from another source.
        text_column: The column of .jsonl and .parquet files that contains the text.
        window: Tokens per window.
        calibration_tokens: For the level database. Like the other three, rounded up to whole windows.
        search_tokens: The pool from which the minibatches of the search are drawn.
        validation_tokens: For the sanity check of the dense model, and for what is tuned.
        test_tokens: For the final comparison.
        bos: Start every window with the tokenizer's BOS token, which counts as part of the window.
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
        check_source(self.source, "data.source")
        if self.test_source is not None:
            check_source(self.test_source, "data.test_source")

    def num_windows(self, split: str) -> int:
        """How many windows a split has."""
        return ceil(getattr(self, f"{split}_tokens") / self.window)
