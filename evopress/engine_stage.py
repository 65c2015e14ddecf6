"""Measures the models of a run in an inference engine, after their export."""

import logging
from math import ceil
from typing import Any

from evopress.engines import EngineComparison, as_lines, as_section
from evopress.evaluation.context import EvaluationContext
from evopress.export import SearchedModel
from evopress.job import Job
from evopress.runtime.files import write_atomically
from evopress.space.units import Profile

log = logging.getLogger(__name__)


def measure_in_engine(job: Job, context: EvaluationContext, uniform: Profile, *, exported: str) -> dict[str, Any]:
    """The entry `engine` of the results. It also becomes a section of the model card of the checkpoint.

    `exported` is the name in the results of the model whose checkpoints are in the run directory.
    """
    test, limit = context.splits.test, job.eval.engine_tokens
    windows = test if limit is None else test[: ceil(limit / test.shape[1])]
    folder = job.folder / "checkpoints"
    comparison = EngineComparison(settings=job.eval, export=job.export, windows=windows, scratch=folder)
    model = SearchedModel(context.lm, context.space, uniform, context.evaluator.weights)
    entry = comparison.measure(exported, folder, uniform=model)
    for line in as_lines(entry):
        log.info("%s", line)
    for name, measured in entry["models"].items():
        numbers = {key: value for key, value in measured.items() if isinstance(value, int | float)}
        job.tracker.summary({f"{name}/engine/{key}": value for key, value in numbers.items()})
    card = folder / comparison.checkpoint_format.name / "README.md"
    write_atomically(card, "\n".join(filter(None, (card.read_text(), as_section(entry)))))
    return entry
