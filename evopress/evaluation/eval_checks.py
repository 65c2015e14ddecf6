"""Checks the settings of the final evaluation, before any model is loaded."""

import difflib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerBase

from evopress.evaluation.eval_settings import Eval
from evopress.evaluation.lm_eval_tasks import load_tasks, task_manager

if TYPE_CHECKING:
    from lm_eval.api.task import Task

log = logging.getLogger(__name__)


def check_eval(settings: Eval) -> None:
    """Raise ValueError for folders and tasks that do not exist. Loads no model and no data."""
    if settings.include_path is not None and not Path(settings.include_path).is_dir():
        raise ValueError(f"eval.include_path is {settings.include_path!r}, which is not a folder")
    _check_num_fewshot(settings)
    if settings.tasks:
        _check_names(settings)


def _check_num_fewshot(settings: Eval) -> None:
    for task in settings.num_fewshot if isinstance(settings.num_fewshot, dict) else ():
        if task not in settings.tasks:
            tasks = ", ".join(settings.tasks) or "empty"
            raise ValueError(f"eval.num_fewshot names {task!r}, which is not in eval.tasks ({tasks}): add it there")


def _check_names(settings: Eval) -> None:
    known_tasks = task_manager(settings).all_tasks
    for task in settings.tasks:
        if settings.tasks.count(task) > 1:
            raise ValueError(f"eval.tasks names {task!r} twice: name it once")
        if task not in known_tasks:
            similar = ", ".join(difflib.get_close_matches(task, known_tasks, n=3)) or "none"
            raise ValueError(
                f"eval.tasks names {task!r}, which is not a task of lm-eval (similar names: {similar}): "
                "`lm-eval ls tasks` lists all tasks"
            )


def check_tasks(settings: Eval) -> None:
    """Load the data of all tasks. Raises ValueError for a task that cannot be run. Loads no model."""
    if not settings.tasks:
        return
    loaded = load_tasks(settings)
    _check_overlap(loaded)
    for entry, tasks in loaded.items():
        for name, task in tasks.items():
            _check_kind(name, task)
            _check_examples(name, task, settings.num_fewshot_of(entry))
    kinds = {task.get_config("output_type") for tasks in loaded.values() for task in tasks.values()}
    if settings.gen_kwargs and not kinds & {"generate_until", None}:
        raise ValueError("eval.gen_kwargs is set, but no task of eval.tasks generates text: set it to null")


def _check_overlap(loaded: "Mapping[str, Mapping[str, Task]]") -> None:
    entry_of: dict[str, str] = {}
    for entry, tasks in loaded.items():
        for name in tasks:
            if name in entry_of:
                raise ValueError(
                    f"eval.tasks names {name!r} twice, in {entry_of[name]!r} and in {entry!r}: remove one of them"
                )
            entry_of[name] = entry


def _check_kind(name: str, task: "Task") -> None:
    if getattr(task, "UNSAFE_CODE", False):
        raise ValueError(
            f"eval.tasks contains {name!r}, which runs code that the model writes: export the model, and run this task "
            "with lm-eval itself in an isolated environment"
        )
    if getattr(task, "MULTIMODAL", False):
        raise ValueError(f"eval.tasks contains {name!r}, which needs images or sound: use text-only tasks")


def _check_examples(name: str, task: "Task", num_fewshot: int | None) -> None:
    if num_fewshot and task.get_config("num_fewshot") == 0:
        log.warning(
            "%s runs without examples, although eval.num_fewshot asks for %d: lm-eval never adds examples to a task "
            "whose own num_fewshot is 0",
            name,
            num_fewshot,
        )


def check_chat_template(settings: Eval, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ValueError if tasks use a chat template, but the tokenizer has none or its template refuses messages."""
    if not (settings.tasks and settings.apply_chat_template):
        return
    if tokenizer.chat_template is None:
        raise ValueError(
            "eval.apply_chat_template is true, but the tokenizer of the model has no chat template: set it to false, "
            "or use an instruct model"
        )
    system = [{"role": "system", "content": settings.system_instruction}] if settings.system_instruction else []
    messages = [*system, {"role": "user", "content": "question"}]
    try:
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template is a program that can raise errors of many types
        raise ValueError(
            f"eval.apply_chat_template is true, but the chat template of the model refuses the messages "
            f"({type(error).__name__}: {error}): set it to false"
            + (", or set eval.system_instruction to null" if system else "")
        ) from error
