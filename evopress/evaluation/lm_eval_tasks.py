"""Tasks of lm-evaluation-harness on a model in memory."""

import contextlib
import difflib
import logging
from collections.abc import Iterator
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from evopress.data.sources import check_source
from evopress.runtime.config_class import config_class

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

log = logging.getLogger(__name__)


@config_class
class Eval:
    """What is measured at the end besides the test text.

    `datasets` are more texts for perplexity and KL (sources as in `data.source`). `tasks` are those of
    lm-evaluation-harness, or of YAML files in `include_path`; `limit` takes the first examples only. Such a YAML file
    may name Python functions and templates, which lm-eval runs: point `include_path` at tasks that you trust.
    """

    datasets: list[str] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)
    include_path: str | None = None
    num_fewshot: int | None = Field(default=None, ge=0)
    limit: int | None = Field(default=None, gt=0)
    batch_size: int = Field(default=8, gt=0)


def check_tasks(settings: Eval) -> None:
    """Raises ValueError for data sets and tasks that do not exist; loads no model and no data."""
    for source in settings.datasets:
        check_source(source, "eval.datasets")
    if settings.include_path is not None and not Path(settings.include_path).is_dir():
        raise ValueError(f"eval.include_path is {settings.include_path!r}, which is not a folder")
    if not settings.tasks:
        return
    known = _manager(settings).all_tasks
    for task in settings.tasks:
        if task not in known:
            close = ", ".join(difflib.get_close_matches(task, known, n=3)) or "none is close"
            raise ValueError(
                f"eval.tasks names {task!r}, which lm-eval does not have ({close}): see `lm-eval ls tasks`"
            )


def run_tasks(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: Eval
) -> dict[str, dict[str, float]]:
    """Scores by task and metric name ("acc", "acc_norm", "acc_stderr", …)."""
    from lm_eval import simple_evaluate  # takes seconds
    from lm_eval.models.huggingface import HFLM

    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=settings.batch_size)
    # Data files that a local task names are relative to the folder of its YAML.
    with contextlib.chdir(settings.include_path or "."), _quiet():
        found = simple_evaluate(
            model=harness,
            tasks=list(settings.tasks),
            num_fewshot=settings.num_fewshot,
            limit=settings.limit,
            task_manager=_manager(settings),
            bootstrap_iters=0,
            random_seed=0,
            numpy_random_seed=0,
            torch_random_seed=0,
            fewshot_random_seed=0,
        )
    return {
        task: {key.partition(",")[0]: float(value) for key, value in scores.items() if isinstance(value, int | float)}
        for task, scores in found["results"].items()
    }


def _manager(settings: Eval) -> "TaskManager":
    from lm_eval.tasks import TaskManager

    if settings.include_path is None:
        return TaskManager()
    include = str(Path(settings.include_path).resolve())
    own = TaskManager(include_path=include, include_defaults=False)  # saves reading lm-eval's thousands of tasks
    return own if set(settings.tasks) <= set(own.all_tasks) else TaskManager(include_path=include)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """lm-eval tells much; warnings and errors still come through."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "lm-eval", "datasets")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
