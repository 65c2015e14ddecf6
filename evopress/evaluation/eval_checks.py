"""Checks the settings of the final evaluation, before any model is loaded."""

import difflib
from pathlib import Path

from evopress.evaluation.eval_settings import Eval
from evopress.evaluation.lm_eval_tasks import task_manager


def check_eval(settings: Eval) -> None:
    """Raises ValueError for folders and tasks that do not exist. Loads no model and no data."""
    if settings.include_path is not None and not Path(settings.include_path).is_dir():
        raise ValueError(f"eval.include_path is {settings.include_path!r}, which is not a folder")
    if settings.tasks:
        _check_tasks(settings)


def _check_tasks(settings: Eval) -> None:
    known_tasks = task_manager(settings).all_tasks
    for task in settings.tasks:
        if task not in known_tasks:
            similar = ", ".join(difflib.get_close_matches(task, known_tasks, n=3)) or "none is close"
            raise ValueError(
                f"eval.tasks names {task!r}, which lm-eval does not have ({similar}): see `lm-eval ls tasks`"
            )
