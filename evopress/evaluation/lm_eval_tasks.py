"""Runs tasks of lm-evaluation-harness on a model in memory. The harness is imported when used: it takes seconds."""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from evopress.evaluation.eval_settings import Eval

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

SEEDS = dict.fromkeys(("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed"), 0)

Scores = dict[str, float]
"""The scores of one task by the name of the metric: "acc", "acc_norm", "acc_stderr", …"""


def run_tasks(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: Eval) -> dict[str, Scores]:
    """The scores of the model on each task."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    harness_model = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=settings.batch_size)
    with _inside(settings.include_path), _quiet():
        results = simple_evaluate(
            model=harness_model,
            tasks=list(settings.tasks),
            num_fewshot=settings.num_fewshot,
            limit=settings.limit,
            task_manager=task_manager(settings),
            bootstrap_iters=0,
            **SEEDS,
        )
    return {task: _numbers(entry) for task, entry in results["results"].items()}


def task_manager(settings: Eval) -> "TaskManager":
    """The tasks that lm-eval can run. Its own thousands of tasks are read only if `include_path` lacks one."""
    from lm_eval.tasks import TaskManager

    if settings.include_path is None:
        return TaskManager()
    folder = str(Path(settings.include_path).resolve())
    local_tasks = TaskManager(include_path=folder, include_defaults=False)
    is_complete = set(settings.tasks) <= set(local_tasks.all_tasks)
    return local_tasks if is_complete else TaskManager(include_path=folder)


def _numbers(entry: Mapping[str, object]) -> Scores:
    """The metrics in the results of a task, whose keys are such as "acc,none"."""
    return {key.partition(",")[0]: float(value) for key, value in entry.items() if isinstance(value, int | float)}


def _inside(include_path: str | None) -> contextlib.AbstractContextManager[None]:
    """While open, the folder of local tasks is the working directory: their data files are relative to it."""
    return contextlib.chdir(include_path or ".")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """While open, lm-eval and datasets log warnings and errors only."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "lm-eval", "datasets")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
