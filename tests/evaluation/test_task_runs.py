"""Results of tasks are kept one by one, reused only if nothing that they depend on changed, and shared by processes."""

import json
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from evopress.evaluation import task_runs
from evopress.evaluation.context import EvaluationContext
from evopress.evaluation.eval_settings import Eval
from evopress.evaluation.evaluator import Evaluator, EvaluatorSettings
from evopress.evaluation.lm_eval_tasks import TaskResult
from evopress.evaluation.task_identity import task_identities
from evopress.evaluation.task_runs import measure_tasks
from evopress.runtime import distributed
from evopress.space.units import Space
from tests.evaluation.task_files import write_tasks
from tests.tiny_models import tiny

PROFILES = {"dense": None, "uniform": (), "searched": ()}
SETTINGS = Eval(tasks=["piqa", "arc"])
IDENTITIES = {"piqa": {"task": "piqa"}, "arc": {"task": "arc"}}
SCRIPT = """
import json, sys
from pathlib import Path
from evopress.runtime import distributed
from tests.evaluation.test_task_runs import measured_on_tiny

distributed.join()
scores = measured_on_tiny(Path(sys.argv[1]), Path(sys.argv[2]))
Path(sys.argv[2], f"process-{distributed.rank()}.json").write_text(json.dumps(scores))
"""


def tiny_context() -> EvaluationContext:
    lm, space = tiny("llama"), Space(())
    evaluator = Evaluator(lm, space, None, EvaluatorSettings())
    return EvaluationContext(lm, None, space, evaluator, None, {"model": "tiny"})  # type: ignore[arg-type]


def measured_on_tiny(tasks: Path, folder: Path) -> dict:
    """The scores of real tasks of lm-eval."""
    context = tiny_context()
    settings = Eval(tasks=["pairs", "answers", "rolling"], include_path=str(tasks), limit=3, log_samples=True)
    profiles = {"dense": None, "searched": ()}
    identities = task_identities(settings, context.lm)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # a description that takes seconds
        return measure_tasks(context, profiles, settings=settings, identities=identities, folder=folder)


@pytest.fixture
def runs(monkeypatch):
    """The pairs that are run. Instead of lm-eval, the length of the task's name is its accuracy."""
    pairs: list[str] = []

    def fake(_model, _tokenizer, *, task, **_others) -> TaskResult:
        if task == "broken":
            raise KeyboardInterrupt
        pairs.append(task)
        scores = {task: {"acc,none": len(task) / 10}}
        return TaskResult(scores, scores, {task: [{"doc_id": 0, "answer": "ja – é"}]})

    monkeypatch.setattr(task_runs, "run_task", fake)
    monkeypatch.setattr(task_runs, "task_manager", lambda _: None)
    return pairs


def measure(folder: Path, context: EvaluationContext | None = None, **changes) -> dict:
    arguments = {"settings": SETTINGS, "identities": IDENTITIES, "folder": folder, **changes}
    return measure_tasks(context or tiny_context(), PROFILES, **arguments)


def test_every_candidate_is_scored_on_every_task(runs, tmp_path):
    scores = measure(tmp_path)
    assert scores == {name: {"piqa": {"acc,none": 0.4}, "arc": {"acc,none": 0.3}} for name in PROFILES}
    assert runs == ["piqa", "arc"] * 3


def test_samples_are_written_as_json_lines(runs, tmp_path):
    measure(tmp_path)
    (line,) = (tmp_path / "searched" / "samples_arc.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line) == {"doc_id": 0, "answer": "ja – é"}


def test_what_was_finished_before_a_kill_is_not_run_again(runs, tmp_path):
    identities = {**IDENTITIES, "broken": {}}
    with pytest.raises(KeyboardInterrupt):
        measure(tmp_path, settings=Eval(tasks=["piqa", "broken"]), identities=identities)
    assert runs == ["piqa"]
    measure(tmp_path)
    assert runs == ["piqa"] + ["arc"] + ["piqa", "arc"] * 2


def test_a_second_measurement_runs_nothing_and_another_task_only_itself(runs, tmp_path):
    first = measure(tmp_path)
    del runs[:]
    assert measure(tmp_path) == first
    assert runs == []
    more = measure(
        tmp_path, settings=Eval(tasks=["arc", "copa", "piqa"]), identities={**IDENTITIES, "copa": {"task": "copa"}}
    )
    assert runs == ["copa"] * 3
    assert list(more["dense"]) == ["arc", "copa", "piqa"]


@pytest.mark.parametrize(
    ("changed", "again"),
    [
        ({"identities": {**IDENTITIES, "arc": {"task": "arc", "limit": 5}}}, ["arc"] * 3),
        ({"context": replace(tiny_context(), identity={"model": "other"})}, ["piqa", "arc"] * 3),
    ],
)
def test_results_are_run_again_if_what_they_depend_on_changes(runs, tmp_path, changed, again):
    measure(tmp_path)
    del runs[:]
    measure(tmp_path, **changed)
    assert runs == again


def test_results_of_another_profile_are_not_reused(runs, tmp_path):
    measure(tmp_path)
    del runs[:]
    other = {**PROFILES, "searched": None}
    measure_tasks(tiny_context(), other, settings=SETTINGS, identities=IDENTITIES, folder=tmp_path)
    assert runs == ["piqa", "arc"]


@pytest.mark.parametrize("damage", ["damaged", "without samples"])
def test_damaged_results_are_run_again(runs, tmp_path, damage, caplog):
    first = measure(tmp_path)
    del runs[:]
    if damage == "damaged":
        path = tmp_path / "dense" / "arc.json"
        path.write_text(path.read_text().replace("0.3", "0.9"))
    else:
        (tmp_path / "dense" / "samples_arc.jsonl").unlink()
    assert measure(tmp_path) == first
    assert runs == ["arc"]


@pytest.mark.parametrize("number", [2, 3, 8])
def test_processes_run_every_pair_once(runs, tmp_path, number, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: number)
    for rank in range(number):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(distributed, "gather", lambda own: [own])
        with suppress(KeyError):  # the results of the other processes are missing
            measure(tmp_path / str(rank))
    written = [str(path.relative_to(path.parents[1])) for path in tmp_path.glob("*/*/*.json")]
    assert sorted(written) == sorted(f"{name}/{task}.json" for name in PROFILES for task in IDENTITIES)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_processes_measure_the_same_as_one(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    tasks, alone, both = tmp_path / "tasks", tmp_path / "alone", tmp_path / "both"
    write_tasks(tasks)
    both.mkdir()
    expected = measured_on_tiny(tasks, alone)
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([*command, tmp_path / "script.py", tasks, both], check=True, env=environment, timeout=400)
    for rank in range(2):
        assert json.loads((both / f"process-{rank}.json").read_text()) == expected
    for path in alone.rglob("*.json*"):
        assert (both / path.relative_to(alone)).read_bytes() == path.read_bytes()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_identities_change_with_whatever_scores_depend_on_and_with_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "tasks"
    write_tasks(folder)
    lm = tiny("llama")

    def identity(**changes) -> dict:
        settings = Eval(**{"tasks": ["pairs"], "include_path": str(folder), **changes})
        return json.loads(json.dumps(task_identities(settings, lm)["pairs"]))

    first = identity()
    assert identity(tasks=["pairs", "answers"], datasets=["pydoc"], num_fewshot={"answers": 1}) == first
    changes = {
        "num_fewshot": {"pairs": 1},
        "limit": 0.5,
        "batch_size": "auto",
        "apply_chat_template": True,
        "system_instruction": "Be right.",
        "gen_kwargs": {"temperature": 1},
        "log_samples": True,
    }
    for name, value in changes.items():
        assert identity(**{name: value}) != first, name
    for name in ("questions.jsonl", "pairs.yaml", "needy.py"):
        before = (folder / name).read_text()
        (folder / name).write_text(
            before.replace("house", "home").replace("acc,", "acc_norm,").replace("docs\n", "docs \n")
        )
        assert (folder / name).read_text() != before
        assert identity() != first, name
        (folder / name).write_text(before)
