"""Runs the tasks on every candidate. The processes share the work, and a finished task is never repeated.

Every pair of a candidate and an entry of `eval.tasks` is run by one process. The process immediately writes the results
to the run directory, together with everything that they depend on. So after a kill, each process repeats at most the
pair that it was working on.
"""

import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TypeVar

from evopress.evaluation.context import EvaluationContext
from evopress.evaluation.eval_settings import Eval
from evopress.evaluation.lm_eval_tasks import TaskResult, run_task, task_manager
from evopress.evaluation.task_scores import Scores, metric_keys, short_key, stderr_key
from evopress.runtime import distributed
from evopress.runtime.checksums import read_json_if_intact, with_checksum
from evopress.runtime.files import remove_leftovers, write_atomically
from evopress.runtime.json_files import write_json
from evopress.space.apply import runnable
from evopress.space.units import Profile

log = logging.getLogger(__name__)

K = TypeVar("K")
V = TypeVar("V")

Pair = tuple[str, str]
"""A candidate and an entry of `eval.tasks`."""

Columns = dict[str, Scores]
"""The scores that tables show for one entry of `eval.tasks`, by name of the task or group."""


@dataclass(frozen=True)
class TaskFiles:
    """The task results in a run directory: `<candidate>/<task>.json` and `<candidate>/samples_<task>.jsonl`."""

    folder: Path

    def read(self, pair: Pair, identity: Mapping[str, object]) -> Columns | None:
        """The scores of a pair, if they were measured under the same `identity`."""
        recorded = read_json_if_intact(self._path(pair, "{}.json"))
        if recorded.get("depends_on") != _as_json(identity):
            return None
        samples = [self._path((pair[0], name), "samples_{}.jsonl") for name in recorded["samples"]]
        return recorded["columns"] if all(path.exists() for path in samples) else None

    def write(self, pair: Pair, identity: Mapping[str, object], result: TaskResult) -> None:
        """Write the samples first and the scores last, so a file with scores means that everything is written."""
        self._path(pair, "{}.json").parent.mkdir(parents=True, exist_ok=True)
        for name, samples in result.samples.items():
            lines = [json.dumps(sample, default=str, ensure_ascii=False) + "\n" for sample in samples]
            write_atomically(self._path((pair[0], name), "samples_{}.jsonl"), "".join(lines))
        content = {
            "columns": result.columns,
            "scores": result.scores,
            "samples": list(result.samples),
            "depends_on": _as_json(identity),
        }
        write_json(self._path(pair, "{}.json"), with_checksum(content))

    def _path(self, pair: Pair, pattern: str) -> Path:
        candidate, task = pair
        return self.folder / candidate / pattern.format(re.sub(r"[^\w.-]", "_", task))


def measure_tasks(
    context: EvaluationContext,
    profiles: Mapping[str, Profile | None],
    *,
    settings: Eval,
    identities: Mapping[str, Mapping[str, object]],
    folder: Path,
) -> dict[str, Columns]:
    """The scores of every candidate, by name of the task or group.

    `profiles` has the candidates by name. `identities` is the result of `task_identities`. The results are kept in
    `folder`. Every process must call this.
    """
    depends_on = {
        (name, task): {
            **identities[task],
            "profile": None if profile is None else list(profile),
            "model": context.identity,
        }
        for name, profile in profiles.items()
        for task in settings.tasks
    }
    files = TaskFiles(folder)
    if distributed.is_first():
        remove_leftovers(folder, "*/.*.tmp")
    recorded = {pair: columns for pair, identity in depends_on.items() if (columns := files.read(pair, identity))}
    measured = _merged(distributed.gather(recorded))
    if measured:
        log.info("%d of %d task results are already in %s", len(measured), len(depends_on), folder)
    missing = distributed.share([pair for pair in depends_on if pair not in measured])
    new: dict[Pair, Columns] = {}
    for pair, result in _run(context, profiles, settings, missing):
        files.write(pair, depends_on[pair], result)
        new[pair] = result.columns
        log.info("%s on %s (%d of %d)", pair[0], summary(result.columns), len(new), len(missing))
    measured |= _merged(distributed.gather(new))
    return {name: _merged([measured[name, task] for task in settings.tasks]) for name in profiles}


def _run(
    context: EvaluationContext, profiles: Mapping[str, Profile | None], settings: Eval, pairs: Sequence[Pair]
) -> Iterable[tuple[Pair, TaskResult]]:
    """Yield the result of each pair. Pairs of the same candidate must be next to each other."""
    if not pairs:
        return
    manager = task_manager(settings)
    lm = context.lm
    for name, group in groupby(pairs, key=lambda pair: pair[0]):
        with runnable(lm, context.space, context.evaluator.weights, profiles[name]) as model:
            for _, task in group:
                yield (name, task), run_task(model, lm.tokenizer, task=task, settings=settings, manager=manager)


def summary(columns: Mapping[str, Scores]) -> str:
    """piqa acc 0.7812 ± 0.0097, acc_norm 0.7905 ± 0.0095"""
    return "; ".join(
        f"{task} {', '.join(_figure(scores, key) for key in metric_keys(scores))}" for task, scores in columns.items()
    )


def _figure(scores: Scores, key: str) -> str:
    error = scores.get(stderr_key(key))
    return f"{short_key(key)} {scores[key]:.4g}" + ("" if error is None else f" ± {error:.2g}")


def _merged(parts: Iterable[Mapping[K, V]]) -> dict[K, V]:
    """One dict with all entries."""
    return {key: value for part in parts for key, value in part.items()}


def _as_json(identity: Mapping[str, object]) -> object:
    """The value that comes back when `identity` is saved as JSON and read again."""
    return json.loads(json.dumps(identity))
