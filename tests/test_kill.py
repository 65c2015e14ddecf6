"""A run that is killed at any moment and resumed writes the same bytes as an undisturbed one."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from tests.wandb_files import wandb_records

PROJECT = Path(__file__).parents[1]
STAGES = ("database", "search", "tune", "evaluate", "export")
KILLS = int(os.environ.get("EVOPRESS_KILLS", len(STAGES)))
"""Number of kills, spread evenly over the stages. `make test-faults` sets a higher number."""

PATIENCE = 300
"""Seconds that any wait may take on a busy machine."""

SETTINGS = [
    "data.calibration_tokens=8192",
    "data.search_tokens=4096",
    "data.validation_tokens=1024",
    "data.test_tokens=4096",
    "search.generations=4",
    "tune.tokens=4096",
    "tune.resolve=signround",
    "tune.resolve_steps=10",
    "tune.save_minutes=1e-3",
    "export.formats=[hf,zeroed]",
]


def start(folder: Path, *settings: str) -> subprocess.Popen:
    """Start a run in `folder`, or resume the one that is there, as a user would."""
    has_run = (folder / "run" / ".hydra" / "overrides.yaml").exists()
    arguments = [f"resume={folder}/run"] if has_run else [f"outputs={folder}", f"hydra.run.dir={folder}/run", *SETTINGS]
    return subprocess.Popen(
        [sys.executable, "-m", "evopress.run", *arguments, *settings],
        cwd=PROJECT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finished(folder: Path) -> str:
    """Let the run finish; returns its output."""
    output, _ = (process := start(folder)).communicate(timeout=PATIENCE)
    assert process.returncode == 0, output
    return output


def outcome(folder: Path) -> dict[str, bytes]:
    """The content of all files that must not depend on when a run was killed."""
    names = ("search.jsonl", "profile.json", "profile.txt", "tuned.rounding.safetensors", "tuned.safetensors")
    paths = [folder / "run" / name for name in names]
    paths += sorted(path for path in folder.glob("run/checkpoints/**/*") if path.is_file())
    paths += sorted(folder.glob("databases/*/*/*.safetensors")) + sorted(folder.glob("databases/*/*/manifest.json"))
    folder_name = str(folder).encode()
    return {str(path.relative_to(folder)): path.read_bytes().replace(folder_name, b"FOLDER") for path in paths}


def measured(folder: Path) -> dict:
    """The results without times and memory use."""
    results = json.loads((folder / "run" / "results.json").read_text())
    kept = {name: results[name] for name in ("dense", "uniform", "searched", "tokens", "notes", "done")}
    kept |= {name: results[name] for name in ("tuned", "tuning") if name in results}
    return {**kept, "exports": {name: {**part, "folder": ""} for name, part in results["exports"].items()}}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """An undisturbed run, and the seconds that its stages took."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    finished(folder)
    return folder, json.loads((folder / "run" / "seconds.json").read_text())


def stage_of(folder: Path) -> str:
    """The stage that a run is in, judged by the files written so far."""
    run = folder / "run"
    results = run / "results.json"
    if results.exists():
        return "export" if "done" not in json.loads(results.read_text()) else "done"
    if (run / "tuned.safetensors").exists():
        return "evaluate"
    if (run / "profile.json").exists():
        return "tune"
    if (run / "search.jsonl").exists():
        return "search"
    return "database" if list(folder.glob("databases/*/*/lock")) else "load"


def progress_of(folder: Path) -> int:
    """Blocks in the database and lines in the search log."""
    blocks = len(list(folder.glob("databases/*/*/block-*.safetensors")))
    record = folder / "run" / "search.jsonl"
    return blocks + (record.read_bytes().count(b"\n") if record.exists() else 0)


def wait_until(process: subprocess.Popen, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.005)


def killed_in(stage: str, folder: Path, seconds: dict[str, float], rng: Random) -> str:
    """Kill the run at a random moment after it reached `stage`; returns the stage in which it died.

    In database and search, first wait for a random amount of progress. Then wait for a random part of the `seconds`
    that the stage took in the uninterrupted run. A run that is faster than that one may be "done".
    """
    process = start(folder)
    wait_until(process, lambda: stage_of(folder) == stage)
    most_steps, longest = {
        "database": (7, 0.1),
        "search": (9, 0.1),
        "tune": (1, 0.9),
        "evaluate": (1, 0.6),
        "export": (1, 2.0),
    }[stage]
    steps = progress_of(folder) + rng.randrange(most_steps)
    wait_until(process, lambda: progress_of(folder) >= steps or stage_of(folder) != stage)
    time.sleep(rng.uniform(0, longest) * seconds[stage])
    process.kill()
    output, _ = process.communicate()
    assert process.returncode in (-signal.SIGKILL, 0), output
    return stage_of(folder)


@pytest.mark.slow
@pytest.mark.counts("kills survived")
@pytest.mark.parametrize("part", range(-(-KILLS // len(STAGES))))
def test_runs_killed_in_every_stage_end_with_the_same_bytes(part, uninterrupted, tmp_path, record_property):
    """One run per part, killed once in each stage."""
    folder, seconds = uninterrupted
    rng = Random(part)
    kills: list[str] = []
    for stage in STAGES:
        if stage not in kills and "done" not in kills:  # a late kill may have hit a later stage
            kills.append(killed_in(stage, tmp_path, seconds, rng))
    finished(tmp_path)
    expected, actual = outcome(folder), outcome(tmp_path)
    assert actual.keys() == expected.keys()
    assert [name for name in expected if actual[name] != expected[name]] == []
    assert measured(tmp_path) == measured(folder)
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    unfinished = ("databases/*/*/.*.tmp", "run/.*.tmp", "run/checkpoints/.*")
    assert [path for pattern in unfinished for path in tmp_path.glob(pattern)] == []
    record_property("kills", [stage for stage in kills if stage != "done"])


@pytest.mark.counts("faults")
def test_ctrl_c_during_the_imports_ends_without_a_traceback(tmp_path):
    process = start(tmp_path)
    wait_until(process, lambda: (tmp_path / "run" / ".hydra" / "overrides.yaml").exists())
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130 and "Traceback" not in output, output


@pytest.mark.slow
@pytest.mark.counts("faults")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_with_the_resume_command_and_closes_the_tracker(number, tmp_path):
    process = start(tmp_path, "tracking=wandb", "tracking.mode=offline")
    wait_until(process, lambda: (tmp_path / "run" / "search.jsonl").exists())
    os.killpg(process.pid, number)  # to the process group, because Ctrl-C also reaches W&B's process
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, output
    assert f"resume={tmp_path}/run" in output
    assert "Traceback" not in output
    (closed,) = [record.exit for record in wandb_records(tmp_path / "run") if record.HasField("exit")]
    assert closed.exit_code == 1
