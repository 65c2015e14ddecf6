"""The token windows that the results of a run are measured on."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from torch import Tensor

from evopress.data.settings import Data
from evopress.data.splits import dataset_name, load_test_windows
from evopress.evaluation.context import EvaluationContext
from evopress.runtime import distributed


def load_test_sets(context: EvaluationContext, data: Data, *, sources: Sequence[str], cache: Path) -> dict[str, Tensor]:
    """The test split, then the test windows of each of `sources`, by the name of the data set. Collective."""
    test_sets = {dataset_name(data.test_source or data.source): context.splits.test}
    for source in sources:
        load = partial(load_test_windows, source, data, context.lm.tokenizer, cache)
        test_sets[dataset_name(source)] = distributed.from_first(load)
    return test_sets
