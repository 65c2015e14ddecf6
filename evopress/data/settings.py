"""The data settings: which text to use, how much of it for each purpose, and the length of the windows."""

from math import ceil

from pydantic import Field

from evopress.data.sources import check_source, check_whole_test_split
from evopress.runtime.config_class import UserPath, config_class


@config_class
class Data:
    """Which text to use, and how much of it for each purpose.

    Attributes:
        source: pydoc, wikitext2, c4, fineweb_edu, or a local .txt, .jsonl or .parquet file, or a folder of them.
        validation_source: Another source for the validation text; None: `source`.
        test_source: Another source for the test text; None: `source`.
        text_column: The column of .jsonl and .parquet files that contains the text, or a list of chat messages.
        window: Tokens per window.
        calibration_tokens: For the database of levels. All four numbers of tokens are rounded up to whole windows.
        search_tokens: The pool from which the minibatches of the search are drawn.
        validation_tokens: For checking the dense model and exported checkpoints, and for measuring KL during tuning.
        test_tokens: For the final evaluation. None takes all whole windows of the test text.
        bos: Start every window with the tokenizer's BOS token, which counts as part of the window.
        calibration_seed: None calibrates on the first windows. A seed draws calibration windows at random, from the
            first ones and up to three times as many that come after all other splits. The other splits stay the same.
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
        """How many windows a split has. A test split without a limit counts as 1, which it has at least."""
        return ceil((getattr(self, f"{split}_tokens") or 1) / self.window)
