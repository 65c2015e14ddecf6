"""Everything that the scores of tasks depend on except the weights of the model, as JSON."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from evopress.data.tokenization import tokenizer_identity
from evopress.evaluation.eval_settings import Eval
from evopress.evaluation.lm_eval_tasks import load_tasks
from evopress.models.language_model import LanguageModel
from evopress.runtime.checksums import sha256_of

if TYPE_CHECKING:
    from lm_eval.api.task import Task

LIBRARIES = ("lm_eval", "transformers", "torch")

CODE_FILES = ("*.yaml", "*.py")
"""The files in `eval.include_path` that a task may include or import."""


def task_identities(settings: Eval, lm: LanguageModel) -> dict[str, dict[str, object]]:
    """What the scores of every entry of `eval.tasks` depend on. Loads the data of the tasks. Empty without tasks.

    The identity of an entry does not depend on other entries, so its scores stay valid when another entry is added.
    """
    if not settings.tasks:
        return {}
    generation = getattr(lm.model, "generation_config", None)
    shared: dict[str, object] = {
        "libraries": {name: version(name) for name in LIBRARIES},
        "tokenizer": tokenizer_identity(lm.tokenizer),
        "generation": _as_json(generation.to_dict()) if generation else None,
        "code": _code_hashes(settings.include_path),
        "apply_chat_template": settings.apply_chat_template,
        "limit": settings.limit,
        "batch_size": settings.batch_size,
        "fewshot_as_multiturn": settings.apply_chat_template and settings.fewshot_as_multiturn,
        "system_instruction": settings.system_instruction,
        "gen_kwargs": settings.gen_kwargs,
        "log_samples": settings.log_samples,
    }
    return {
        entry: {
            "task": entry,
            "num_fewshot": settings.num_fewshot_of(entry),
            "members": {name: _task_hash(task, settings.num_fewshot_of(entry)) for name, task in tasks.items()},
            **shared,
        }
        for entry, tasks in load_tasks(settings).items()
    }


def _task_hash(task: "Task", num_fewshot: int | None) -> str:
    """SHA-256 of the YAML of a task, without the path of that file, and of its questions and examples."""
    config = {key: value for key, value in task.dump_config().items() if key != "metadata"}
    digest = hashlib.sha256(_as_json(config).encode())
    _add_documents(digest, task.eval_docs)
    if num_fewshot or (num_fewshot is None and task.get_config("num_fewshot")):
        _add_documents(digest, task.fewshot_docs() or [])
    return digest.hexdigest()


def _add_documents(digest: "hashlib._Hash", documents: Iterable[object]) -> None:
    for document in documents:
        digest.update(_as_json(document).encode())


def _as_json(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=_name)


def _name(value: object) -> str:
    """A string for a value that JSON cannot represent. It is the same in every process."""
    name = getattr(value, "__qualname__", None)
    return f"{getattr(value, '__module__', '')}.{name}" if name else str(value)


def _code_hashes(folder: str | None) -> Mapping[str, str]:
    """SHA-256 by path of the files in a folder that a task may include or import."""
    if folder is None:
        return {}
    root = Path(folder)
    paths = sorted(path for pattern in CODE_FILES for path in root.rglob(pattern))
    visible = [path for path in paths if not any(part.startswith(".") for part in path.relative_to(root).parts)]
    return {path.relative_to(root).as_posix(): sha256_of(path) for path in visible}
