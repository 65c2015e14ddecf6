"""The command line, as a user starts it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from evopress import run

PROJECT = Path(__file__).parents[1]
SMALL = [
    "data.calibration_tokens=1024",
    "data.search_tokens=2048",
    "data.validation_tokens=1024",
    "data.test_tokens=1024",
    "search.generations=2",
]


def start(*arguments: str, cwd: Path = PROJECT, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "evopress.run", *arguments],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
def test_the_command_without_arguments_compresses_and_its_run_can_be_resumed_from_another_folder(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = start("hydra.run.dir=run", *SMALL, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for row in ("dense", "uniform", "searched"):
        assert f"\n{row} " in done.stdout
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["budget"]["achieved"] == 3
    assert results["model"] == "tiny" and results["compress"] == "gptq"
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) > 4
    profile = (tmp_path / "run" / "profile.json").read_bytes()
    log = (tmp_path / "run" / "search.jsonl").read_bytes()
    (tmp_path / "run" / "profile.json").unlink()
    (tmp_path / "run" / "search.jsonl").write_bytes(log[: len(log) * 2 // 3])
    again = start("resume=../run", cwd=elsewhere)
    assert again.returncode == 0, again.stderr
    assert not list(elsewhere.iterdir()) and f"relative paths start from {tmp_path}" in again.stdout
    assert (tmp_path / "run" / "profile.json").read_bytes() == profile
    assert (tmp_path / "run" / "search.jsonl").read_bytes() == log
    assert "is complete" in again.stdout


@pytest.mark.slow
def test_a_sweep_over_budgets_builds_one_database_and_goes_on_after_a_job_that_fails(tmp_path):
    """The first of the budgets cannot be met."""
    done = start("-m", "budget.target=1,2.5,3,4", f"outputs={tmp_path}", f"hydra.sweep.dir={tmp_path}/sweep", *SMALL)
    assert done.returncode == 2, done.stderr
    assert len(list(tmp_path.glob("databases/tiny/*"))) == 1
    assert done.stdout.count("building database") == 1
    achieved = {json.loads(path.read_text())["budget"]["achieved"] for path in tmp_path.glob("sweep/*/results.json")}
    assert achieved == {2.5, 3.0, 4.0}
    assert "raise budget.target to at least 2" in done.stdout and "budget.target=1" in done.stderr
    assert "a job of the sweep failed: budget.target is 1 bits" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["budget.target=1"], "raise budget.target to at least 2", marks=pytest.mark.slow),
        (["search.generatons=3"], "did you mean search.generations?"),
        (["budget=2.5"], "budget=2.5 is not an option: use budget= with one of 2.25bit, 2.5bit, 3bit"),
        (["resume=nowhere"], "resume=nowhere is not a run directory"),
        (["data=text", "data.source=été (1).txt"], """write 'data.source="été (1).txt"'"""),
    ],
)
def test_a_mistake_leads_to_one_message_without_traceback(arguments, message, tmp_path):
    done = start(*arguments, f"outputs={tmp_path}", f"hydra.run.dir={tmp_path}/run")
    assert done.returncode != 0
    assert message in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.slow
def test_an_interrupt_that_a_library_converts_into_another_error_is_still_an_interrupt(tmp_path):
    program = """
import os, signal
import evopress.pipeline, evopress.run

def interrupted(job):
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt as error:
        raise ValueError("a library's own words") from error

evopress.pipeline.run_job = interrupted
evopress.run.main()
"""
    command = [sys.executable, "-c", program, f"hydra.run.dir={tmp_path}/run"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 130, done.stdout + done.stderr
    assert f"resume={tmp_path}/run" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "function"),
    [("preparation", "load_model"), ("preparation", "build_database"), ("search_stage", "run_search")],
)
def test_an_interrupt_that_a_library_swallows_ends_the_run_at_the_next_step(module, function, tmp_path):
    program = f"""
import os, signal
import evopress.{module}, evopress.run
real = evopress.{module}.{function}

def swallowing(*args, **kwargs):
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        pass
    return real(*args, **kwargs)

evopress.{module}.{function} = swallowing
evopress.run.main()
"""
    command = [sys.executable, "-c", program, f"outputs={tmp_path}", f"hydra.run.dir={tmp_path}/run"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 130, done.stdout + done.stderr
    assert f"resume={tmp_path}/run" in done.stdout
    assert not (tmp_path / "run" / "profile.json").exists()


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (PermissionError("read-only"), "the run folder cannot be written (read-only)"),
        (ValueError("no value for the group"), "no value for the group\nbudget=7 is not an option"),
    ],
    ids=["folder", "option"],
)
def test_a_hint_about_options_never_hides_the_error(monkeypatch, capsys, error, shown):
    def fail() -> None:
        raise error

    monkeypatch.setattr(run, "compress", fail)
    monkeypatch.setattr(run.signals, "listen", lambda: None)
    monkeypatch.setattr(sys, "argv", ["evopress", "budget=7"])
    monkeypatch.setattr(run.logging, "raiseExceptions", True)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(SystemExit) as ended:
        run.main()
    told = capsys.readouterr().err if ended.value.code == 1 else str(ended.value.code)
    assert told.startswith(shown)
