"""Runs tasks of lm-evaluation-harness on a model in memory. Its import takes seconds, so functions import it."""

import contextlib
import copy
import io
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from evopress.evaluation.eval_settings import Eval
from evopress.evaluation.task_scores import Scores, columns, scores_of

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager

SEEDS = dict.fromkeys(("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed"), 0)

BOOTSTRAP_ITERS = 1000
"""Bootstrap resamples for standard errors that have no formula. Means, such as accuracy, need none."""

SINGLE_PROCESS = {"LOCAL_RANK": "0", "DISABLE_MULTIPROC": "1"}
"""Environment variables with which lm-eval returns results in every process, and starts no other processes."""

WITHOUT_RESULTS = {**SINGLE_PROCESS, "LOCAL_RANK": "1"}
"""Environment variables with which lm-eval scores the answers but returns nothing.

This saves the seconds in which it collects a description of the machine.
"""


@dataclass(frozen=True)
class TaskResult:
    """The result of one entry of `eval.tasks`.

    `columns` has the scores that tables show. `scores` has the scores of every task and group inside the entry.
    `samples` has the prompts and answers of every task inside it, if they were asked for.
    """

    columns: dict[str, Scores]
    scores: dict[str, Scores]
    samples: Mapping[str, Sequence[Mapping[str, object]]]


def run_task(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    task: str,
    settings: Eval,
    manager: "TaskManager",
) -> TaskResult:
    """Run one entry of `eval.tasks`. The result depends neither on other tasks nor on other processes."""
    from lm_eval.models.huggingface import HFLM

    with _quiet(logging.ERROR):  # HFLM warns about models in memory; it sets a padding token, so it gets a copy
        harness_model = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=settings.batch_size)
    results = evaluate_task(harness_model, task=task, settings=settings, manager=manager)
    scores = {name: scores_of(name, results) for name in results["results"]}
    return TaskResult(columns(results), scores, results.get("samples") or {})


def evaluate_task(
    harness_model: "LM",
    *,
    task: str,
    settings: Eval,
    manager: "TaskManager",
    environment: Mapping[str, str] = SINGLE_PROCESS,
) -> Any:
    """What lm-eval returns for one entry of `eval.tasks`."""
    from lm_eval import simple_evaluate

    with _working_directory(settings.include_path), _quiet(logging.WARNING), _environment(environment):
        return simple_evaluate(
            model=harness_model,
            tasks=[task],
            num_fewshot=settings.num_fewshot_of(task),
            limit=settings.limit,
            task_manager=manager,
            bootstrap_iters=BOOTSTRAP_ITERS,
            log_samples=settings.log_samples,
            apply_chat_template=settings.apply_chat_template,
            fewshot_as_multiturn=settings.apply_chat_template and settings.fewshot_as_multiturn,
            system_instruction=settings.system_instruction,
            gen_kwargs=dict(settings.gen_kwargs) if settings.gen_kwargs else None,  # type: ignore[arg-type]
            **SEEDS,
        )


def task_manager(settings: Eval) -> "TaskManager":
    """The tasks that lm-eval can run. The thousands that it comes with are read only if `include_path` lacks one."""
    if settings.include_path is None:
        return _task_manager(None, True, ())
    folder = Path(settings.include_path).resolve()
    state = tuple(
        (str(path), path.stat().st_mtime_ns, path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.suffix in (".yaml", ".py")
    )
    local_tasks = _task_manager(str(folder), False, state)
    is_complete = set(settings.tasks) <= set(local_tasks.all_tasks)
    return local_tasks if is_complete else _task_manager(str(folder), True, state)


@cache
def _task_manager(folder: str | None, include_defaults: bool, _state: tuple[object, ...]) -> "TaskManager":
    """The tasks in `folder`, and lm-eval's own, which take seconds to read. `_state` changes if the files do."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=folder, include_defaults=include_defaults)


def load_tasks(settings: Eval) -> "dict[str, dict[str, Task]]":
    """Load every entry of `eval.tasks`: the tasks inside it by name, with their data. Downloads missing data.

    Raises ValueError if lm-eval cannot load one of them.
    """
    manager = task_manager(settings)
    loaded = {}
    with _working_directory(settings.include_path), _quiet(logging.WARNING):
        for entry in settings.tasks:
            try:
                loaded[entry] = _load(manager, entry)
            except Exception as error:  # a task runs its own code, which can raise any error
                raise ValueError(
                    f"eval.tasks names {entry!r}, which lm-eval cannot load ({type(error).__name__}: {error}): install "
                    "the packages and provide the data that the task needs, or remove it from eval.tasks"
                ) from error
    return loaded


def _load(manager: "TaskManager", entry: str) -> "dict[str, Task]":
    if hasattr(manager, "load"):
        return dict(manager.load([entry])["tasks"])
    return dict(_leaves(manager.load_task_or_group([entry])))  # lm-eval before 0.4.12


def _leaves(nested: Mapping[Any, Any]) -> "Iterator[tuple[str, Task]]":
    """Yield the tasks inside nested groups."""
    for name, value in nested.items():
        if isinstance(value, Mapping):
            yield from _leaves(value)
        else:
            yield name, value


def _working_directory(include_path: str | None) -> contextlib.AbstractContextManager[None]:
    """While open, the folder of local tasks is the working directory, because their data files are relative to it."""
    return contextlib.chdir(include_path or ".")


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """While open, these environment variables have these values."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _quiet(level: int) -> Iterator[None]:
    """While open, lm-eval and datasets log nothing below `level`, and print nothing."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "lm-eval", "datasets")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(level)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for logger, before in zip(loggers, levels, strict=True):
            logger.setLevel(before)
