"""The token windows that the results of a run are measured on."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from torch import Tensor

from evopress.data.windows import Data, load_test, set_name
from evopress.evaluation.context import EvaluationContext
from evopress.runtime import distributed


def load_test_sets(context: EvaluationContext, data: Data, *, sources: Sequence[str], cache: Path) -> dict[str, Tensor]:
    """The test split, then the test windows of each of `sources`, by the name of the data set. Collective."""
    test_sets = {set_name(data.test_source or data.source): context.splits.test}
    for source in sources:
        load = partial(load_test, source, data, context.lm.tokenizer, cache)
        test_sets[set_name(source)] = distributed.from_first(load)
    return test_sets
