"""Metrics reach `metrics.jsonl` and W&B, and a failing service does not harm the run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import wandb
from PIL import Image

from evopress.runtime import tracking
from evopress.runtime.metrics_file import JsonLines
from evopress.runtime.tracking import Trackers, WandB
from evopress.runtime.wandb_login import configured_mode
from tests.wandb_files import wandb_records


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_json_lines_hold_every_metric_in_order(tmp_path):
    tracker = JsonLines()
    tracker.start(tmp_path, "name", {})
    tracker.log({"search/best": 0.5}, step=0)
    tracker.log({"search/best": 0.25}, step=1)
    tracker.summary({"kl": 0.1})
    assert lines(tmp_path) == [
        {"step": 0, "search/best": 0.5},
        {"step": 1, "search/best": 0.25},
        {"summary": {"kl": 0.1}},
    ]


@pytest.mark.counts("faults")
def test_an_incomplete_last_line_is_removed_and_the_rest_is_kept(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"ste')
    tracker = JsonLines()
    tracker.start(tmp_path, "name", {})
    tracker.log({}, step=1)
    assert lines(tmp_path) == [{"step": 0}, {"step": 1}]


def test_several_trackers_receive_the_same_calls(tmp_path):
    first, second = JsonLines(), JsonLines()
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first.start(tmp_path / "a", "name", {})
    second.start(tmp_path / "b", "name", {})
    Trackers(first, second).log({"x": 1.0}, step=3)
    assert lines(tmp_path / "a") == lines(tmp_path / "b") == [{"step": 3, "x": 1.0}]


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield
    wandb.teardown()  # a run that failed on purpose must not reach the next test


@pytest.mark.slow
def test_an_offline_wandb_run_contains_config_metrics_summary_and_files(tmp_path, offline):
    folder = tmp_path / "sweeps" / "monday" / "first"
    folder.mkdir(parents=True)
    (folder / "profile.json").write_text("{}")
    tracker = WandB(project="test", mode="auto")
    tracker.start(folder, "tiny gptq", {"seed": 7, "budget": {"target": 3}})
    for step, fitness in enumerate([0.5, 0.25]):
        tracker.log({"search/best_fitness": fitness}, step=step)
    tracker.summary({"searched/kl/pydoc": 0.125})
    tracker.table("results", {"dense": {"kl": 0.0}, "searched": {"kl": 0.125}})
    tracker.images([_plot(folder)])
    tracker.files([folder / "profile.json"])
    tracker.finish(0)
    records = wandb_records(folder)
    run = next(record.run for record in records if record.HasField("run"))
    assert (run.project, run.display_name, run.run_group) == ("test", "tiny gptq", "monday")
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["seed"] == 7 and config["budget"] == {"target": 3}
    history = [
        {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    media = {key: value for row in history for key, value in row.items()}
    assert (media["results._type"], media["results.nrows"], media["results.ncols"]) == ("table-file", 2, 2)
    assert (media["plots/search._type"], media["plots/search.width"]) == ("image-file", 4)
    history = [row for row in history if "search/question" in row]
    assert [(row["search/question"], row["search/best_fitness"]) for row in history] == [(0, 0.5), (1, 0.25)]
    summary = {
        ".".join(item.nested_key) or item.key: json.loads(item.value_json)
        for record in records
        if record.HasField("summary")
        for item in record.summary.update
    }
    assert summary["searched/kl/pydoc"] == 0.125
    artifacts = [record.artifact for record in records if record.HasField("artifact")]
    (artifact,) = [artifact for artifact in artifacts if artifact.type == "result"]
    (stored,) = [entry for entry in artifact.manifest.contents if entry.path == "profile.json"]
    assert Path(stored.local_path).read_text() == "{}"


@pytest.mark.counts("faults")
def test_a_wandb_failure_at_the_start_is_logged_once_and_stops_nothing(tmp_path, offline, caplog, monkeypatch):
    def broken(**settings):
        raise wandb.errors.CommError("the service is down")

    monkeypatch.setattr(wandb, "init", broken)
    tracker = WandB(mode="offline")
    tracker.start(tmp_path, "name", {})
    tracker.log({"search/best_fitness": 1.0}, step=0)
    tracker.finish(0)
    assert sum("the service is down" in record.message for record in caplog.records) == 1


def _plot(folder):
    path = folder / "search.png"
    Image.new("RGB", (4, 4)).save(path)
    return path


@pytest.mark.counts("faults")
def test_a_wandb_failure_after_the_start_is_logged_once_and_stops_nothing(tmp_path, offline, caplog, monkeypatch):
    def broken(*args, **settings):
        raise ConnectionResetError("connection lost")

    monkeypatch.setattr("wandb.Run.define_metric", broken)
    tracker = WandB(mode="offline")
    tracker.start(tmp_path, "name", {})
    tracker.log({"search/best_fitness": 1.0}, step=0)
    tracker.finish(0)
    assert caplog.text.count("W&B failed (connection lost)") == 1


@pytest.mark.slow
@pytest.mark.counts("faults")
def test_a_service_that_stops_mid_run_delays_the_end_by_at_most_the_upload_limit(tmp_path):
    command = [sys.executable, "-m", "tests.wandb_service", str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("WARNING W&B failed") == 1 and "Traceback" not in done.stderr
    assert [line.get("step") for line in lines(tmp_path)] == [0, 1, 2, None]


def started(folder: Path, **settings) -> WandB:
    folder.mkdir(parents=True, exist_ok=True)
    tracker = WandB(**settings)
    tracker.start(folder, "name", {})
    tracker.log({"database/share_done": 0.5}, step=1)
    tracker.finish(0)
    return tracker


def run_record(folder: Path):
    return next(record.run for record in wandb_records(folder) if record.HasField("run"))


def test_environment_variables_of_wandb_replace_settings_that_are_null(tmp_path, offline, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "my-project")
    monkeypatch.setenv("WANDB_RUN_GROUP", "my-group")
    monkeypatch.setenv("WANDB_NAME", "my-name")
    started(tmp_path / "env")
    started(tmp_path / "set", project="chosen", group="chosen-group")
    record = run_record(tmp_path / "env")
    assert (record.project, record.run_group, record.display_name) == ("my-project", "my-group", "my-name")
    record = run_record(tmp_path / "set")
    assert (record.project, record.run_group) == ("chosen", "chosen-group")


@pytest.mark.parametrize(
    ("environment", "mode"),
    [
        ({}, "offline"),
        ({"WANDB_API_KEY": "a" * 40}, "online"),
        ({"WANDB_API_KEY": "a" * 40, "WANDB_MODE": "offline"}, "offline"),
        ({"WANDB_API_KEY": "a" * 40, "WANDB_MODE": "disabled"}, "disabled"),
        ({"WANDB_API_KEY": "a" * 40, "WANDB_DISABLED": "true"}, "disabled"),
        ({"WANDB_MODE": "online"}, "online"),
    ],
)
def test_the_mode_of_the_environment_counts_more_than_a_key(environment, mode, monkeypatch, tmp_path):
    for name in ("WANDB_MODE", "WANDB_DISABLED", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert configured_mode() == mode


def test_a_run_that_has_to_be_online_needs_a_key_before_it_starts(monkeypatch, tmp_path):
    for name in ("WANDB_MODE", "WANDB_DISABLED", "WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_CONFIG_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    WandB(mode="auto").check()
    with pytest.raises(ValueError, match=r"tracking\.mode is online, but no W&B API key .*wandb login"):
        WandB(mode="online").check()
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(ValueError, match="WANDB_MODE is online, but no W&B API key"):
        Trackers(WandB(mode="auto")).check()
    (tmp_path / "netrc").write_text("machine my.server login user password secret\n")
    with pytest.raises(ValueError, match="no W&B API key"):
        WandB(mode="online").check()
    (tmp_path / ".config" / "wandb").mkdir(parents=True)
    (tmp_path / ".config" / "wandb" / "settings").write_text("[default]\nbase_url = https://my.server\n")
    WandB(mode="online").check()  # `wandb login --host` writes these two files


def test_a_disabled_run_leaves_no_folder(tmp_path, offline, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    started(tmp_path)
    assert not list(tmp_path.iterdir())


def test_ids_are_random_and_stay_with_the_run_directory(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    second.mkdir()
    run_id = tracking._run_id(first)
    assert tracking._run_id(first) == run_id != tracking._run_id(second)


@pytest.mark.counts("faults")
def test_a_run_that_cannot_start_online_is_recorded_offline_within_seconds(tmp_path, offline, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setattr(tracking, "LONGEST_START_S", 1.0)
    caplog.set_level("INFO")
    started(tmp_path, mode="online")
    assert "could not start the run online" in caplog.text and "wandb sync" in caplog.text
    history = [item.key or item.nested_key[0] for r in wandb_records(tmp_path) for item in r.history.item]
    assert "database/share_done" in history and "database/block" in history
