"""The token windows that the results of a run are measured on."""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from evopress.data.settings import Data
from evopress.data.splits import Splits, check_test_windows, load_test_windows
from evopress.data.test_sets import TestSet
from evopress.data.windows import Windows
from evopress.runtime import distributed

log = logging.getLogger(__name__)


def load_test_sets(
    splits: Splits, data: Data, *, test_sets: Sequence[TestSet], tokenizer: PreTrainedTokenizerBase, cache: Path
) -> dict[str, Windows]:
    """The token windows of every test set, by name. The first of `test_sets` is the test split.

    Every process must call this. Raises ValueError if there is too little text, or if some of the text is also in the
    calibration, search or validation split.
    """
    return distributed.from_first(partial(_load, splits, data, test_sets, tokenizer, cache))


def _load(
    splits: Splits, data: Data, test_sets: Sequence[TestSet], tokenizer: PreTrainedTokenizerBase, cache: Path
) -> dict[str, Windows]:
    first, *others = test_sets
    windows = {
        test_set.name: load_test_windows(test_set.source, data, test_set.num_tokens, tokenizer=tokenizer, cache=cache)
        for test_set in others
    }
    check_test_windows(splits, windows)
    for name, tokens in windows.items():
        log.info("test text %s: %d tokens", name, tokens.numel())
    return {first.name: splits.test, **windows}
