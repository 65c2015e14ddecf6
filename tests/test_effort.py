"""`effort` limits search and tuning, and `finish` takes the best so far. A resumed run ends in the same bytes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from evopress import tune_limit
from evopress.compressors.rtn import RTN
from evopress.config import ConfigError, build_job
from evopress.evaluation.eval_settings import Eval
from evopress.evaluation.oracle import Oracle
from evopress.job import SEARCH_SHARE, Job
from evopress.pipeline import run_job
from evopress.planning.planned_run import plan_run
from evopress.planning.render import effort_line, within_time
from evopress.planning.stages import estimate_resources
from evopress.report.read_run import read_run
from evopress.tuning.settings import Tuning
from tests.configurations import composed
from tests.databases import Killed
from tests.jobs import SEARCH, small_job

TUNE = Tuning(tokens=32 * 8, checks=2, scales_lr=5e-3, norms_lr=5e-3)


@pytest.fixture
def job(model_folders, tmp_path, monkeypatch) -> Job:
    monkeypatch.setattr("evopress.evaluate_stage.write_report", lambda folder: folder / "results.json")  # takes seconds
    settings = {"compress": RTN(bits=[2, 3, 4], group_size=32), "tune": TUNE, "eval": Eval(prompts=[])}
    return small_job(tmp_path / "run", tmp_path, model_folders("llama"), **settings)


def read(job: Job, name: str) -> dict:
    return json.loads((job.folder / name).read_text())


def kept_bytes(job: Job) -> dict[str, bytes]:
    return {name: (job.folder / name).read_bytes() for name in ("search.jsonl", "profile.json", "tuned.safetensors")}


def interrupt_search(job: Job, question: int, monkeypatch) -> None:
    """Kill the run before this question."""
    answer = Oracle.__call__

    def killing(self, number, asked):
        if number == question:
            raise Killed
        return answer(self, number, asked)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Oracle, "__call__", killing)
        run_job(job)


@pytest.mark.slow
def test_search_and_tuning_cost_the_effort_together(job, monkeypatch):
    whole = sum(line["token_equivalents"] for line in _lines(job))
    limited = replace(job, effort=1200, folder=job.folder / "limited")
    run_job(limited)
    costs = [line["token_equivalents"] for line in _lines(limited)]
    tuning = read(limited, "results.json")["tuning"]["tuned"]
    assert _lines(limited)[-1]["reason"] == "effort"
    assert sum(costs[:-2]) < SEARCH_SHARE * 1200 <= sum(costs) < whole
    assert sum(costs) + tuning["token_equivalents"] <= 1200
    assert read_run(limited.folder).stopped == "effort"

    killed = replace(limited, folder=job.folder / "killed")
    interrupt_search(killed, 1, monkeypatch)
    run_job(killed)
    assert kept_bytes(killed) == kept_bytes(limited)


def _lines(job: Job) -> list[dict]:
    if not (job.folder / "search.jsonl").exists():
        run_job(replace(job, stages=("database", "search")))
    return [json.loads(line) for line in (job.folder / "search.jsonl").read_text().splitlines()[1:]]


def test_without_tuning_the_search_may_cost_all_of_it(job):
    assert replace(job, effort="1k").search_limit.token_equivalents == 1000 * SEARCH_SHARE
    assert replace(job, effort="1k", tune=Tuning()).search_limit.token_equivalents == 1000
    assert replace(job, effort="1k", stages=("database", "search", "evaluate")).search_limit.token_equivalents == 1000


def test_the_end_of_a_time_is_recorded_and_found_again(job, monkeypatch):
    seconds = iter([0.0] * 2 + [1e6] * 1000)
    monkeypatch.setattr("evopress.runtime.clock.Clock.spent", lambda self, name: next(seconds))
    timed = replace(job, effort="1h")
    monkeypatch.setattr(tune_limit, "token_equivalents_per_second", lambda task: 1.0)
    run_job(timed)
    assert len(_lines(timed)) == 3, "two questions and the stop"
    before = kept_bytes(timed) if (job.folder / "tuned.safetensors").exists() else None
    assert before is None, "no time is left for a step"
    content, results = (job.folder / "search.jsonl").read_bytes(), read(timed, "results.json")
    for name in ("profile.json", "results.json"):
        (job.folder / name).unlink()
    monkeypatch.setattr("evopress.runtime.clock.Clock.spent", lambda self, name: 0.0)
    run_job(timed)
    assert (job.folder / "search.jsonl").read_bytes() == content
    assert read(timed, "results.json")["searched"] == results["searched"]


@pytest.mark.slow
def test_the_speed_that_turns_time_into_steps_is_measured_once(job, monkeypatch):
    timed = replace(job, effort="1h", search=replace(SEARCH, generations=1))
    monkeypatch.setattr("evopress.runtime.clock.Clock.spent", lambda self, name: 0.0)
    monkeypatch.setattr(tune_limit, "token_equivalents_per_second", lambda task: 1000 / 3600)
    run_job(timed)
    assert read(timed, "effort.json")["tuning"] == pytest.approx(1000)
    before, tuning = kept_bytes(timed), read(timed, "results.json")["tuning"]["tuned"]
    assert 0 < tuning["checks"][-1][0] < 8 and tuning["token_equivalents"] <= 1000
    (job.folder / "tuned.safetensors").unlink()
    (job.folder / "results.json").unlink()
    monkeypatch.setattr(tune_limit, "token_equivalents_per_second", None)
    run_job(timed)
    assert kept_bytes(timed) == before


@pytest.mark.slow
def test_a_finished_run_takes_the_best_so_far_and_stays_as_it_is(job, monkeypatch):
    interrupt_search(job, 3, monkeypatch)
    run_job(replace(job, finish=True))
    lines, results = _lines(job), read(job, "results.json")
    assert [line["ask"] for line in lines] == ["batch"] * 3 + ["stop"]
    best = min(zip(lines[1]["answer"], lines[1]["profiles"], strict=True))[1]
    assert "".join(str(unit["level"]) for unit in read(job, "profile.json")["units"]) == best
    assert results["tuning"]["tuned"]["checks"][0][0] == results["tuning"]["tuned"]["checks"][-1][0] == 0, "no step"
    assert not results["tuning"]["tuned"]["kept"]
    assert read_run(job.folder).stopped == "finish"
    assert any("finish=true" in warning for warning in read_run(job.folder).warnings)
    before = kept_bytes(job)
    (job.folder / "results.json").unlink()
    run_job(job)
    assert kept_bytes(job) == before, "a later resume neither searches nor tunes"
    assert read(job, "results.json")["searched"] == results["searched"]
    (job.folder / "tuned.safetensors").unlink()
    run_job(job)
    tuned = read(job, "results.json")
    assert tuned["tuning"]["tuned"]["kept"] and "tuned" in tuned, "without its file, the tuning is done and measured"


@pytest.mark.slow
def test_an_interrupted_tuning_is_finished_with_its_best_model(job, monkeypatch):
    class Killing(type(job.tracker)):
        def log(self, metrics, *, step):
            if step == 6 and "tune/loss" in metrics:
                raise Killed

    with pytest.raises(Killed):
        run_job(replace(job, tracker=Killing()))
    run_job(replace(job, finish=True))
    tuning = read(job, "results.json")["tuning"]["tuned"]
    assert [step for step, _ in tuning["checks"]] == [0, 4], "the state was saved after the check at step 4"
    assert tuning["kept"] == (tuning["kl_validation_after"] < tuning["kl_validation_before"])


def test_finish_is_refused_if_there_is_nothing_yet(job, monkeypatch):
    with pytest.raises(ValueError, match=r"the search of .* has not started: resume the run without finish=true"):
        run_job(replace(job, finish=True))
    interrupt_search(job, 1, monkeypatch)
    with pytest.raises(ValueError, match="has not yet compared profiles within the budget"):
        run_job(replace(job, finish=True))
    run_job(replace(job, stages=("database", "search")))
    assert "stop" not in {line["ask"] for line in _lines(job)}, "a refused finish leaves the search as it was"
    with pytest.raises(ValueError, match="finish=true is for a run with a single budget"):
        run_job(replace(job, finish=True, targets=(3.0, 2.5)))


def test_another_effort_is_another_search(job):
    run_job(replace(job, effort=4000, stages=("database", "search")))
    with pytest.raises(ValueError, match=r"effort\.token_equivalents: 4000\.0 in the file, 2000\.0 now"):
        run_job(replace(job, effort=2000, stages=("database", "search")))


@pytest.mark.slow
@pytest.mark.parametrize("effort", [1500, 4000, 10**9])
def test_the_plan_counts_what_the_effort_allows(effort, job, monkeypatch):
    limited = replace(job, effort=effort)
    stages = {stage.name: stage.tokens for stage in estimate_resources(plan_run(limited)).stages}
    run_job(limited)
    results = read(limited, "results.json")
    assert stages["search"] == pytest.approx(results["tokens"]["search"], rel=0.2)  # random fitness, other mutants
    assert stages["search"] + stages["tune"] <= effort
    assert f"effort: {effort}; the search may take 50% of it, and the tuning the rest" in effort_line(limited)


def test_the_plan_of_a_time_shows_no_more_than_that_time(job):
    timed = replace(job, effort="10min")
    seconds = {"database": 1000.0, "search": 1000.0, "tune": 1000.0, "evaluate": 1000.0}
    assert within_time(seconds, timed) == {"database": 1000, "search": 300, "tune": 300, "evaluate": 1000}
    assert within_time({**seconds, "search": 60.0}, timed)["tune"] == 540
    assert within_time(seconds, job) == seconds
    assert effort_line(job) == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["finish=true"], "finish=true is for a run that was interrupted: give its folder with resume=DIR"),
        (["finish=3"], "finish is 3: it must be true or false"),
    ],
)
def test_finish_needs_a_run_to_resume(overrides, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        build_job(composed(*overrides), tmp_path)


@pytest.mark.parametrize("effort", ["soon", "30m", "-1", "0k", "true"])
def test_a_wrong_effort_is_refused_before_the_model_is_read(effort, tmp_path: Path):
    job = build_job(composed(f"effort={effort}", "model=hf", "model.name=x", "model.path=nowhere"), tmp_path)
    with pytest.raises(ValueError, match=r"effort is .*: give token equivalents such as 60k"):
        job.check()
