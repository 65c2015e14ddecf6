"""The command line: quotes, resuming, the folders of sweeps, and the announcement of several processes."""

import os
import shlex
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from evopress.arguments import expand_resume, folder_name, start_folder, suggest_quotes, with_home
from evopress.config import CONFIG_FOLDER, build_job
from evopress.models.source import ModelSource
from evopress.runtime import distributed
from evopress.search.fixed_profile import FixedProfile

ODD_NAMES = ["a b", "a(1)", "a=b", "a,b", "~/a", "été", "it's", 'say "so"', "${x}", "a{b}", "[a]b", "null", "1"]


def value_of(override: str) -> object:
    return OverridesParser.create().parse_override(override).value()


def saved_run(folder: Path, **runtime: object) -> Path:
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text("seed: 0\n")
    (folder / ".hydra" / "hydra.yaml").write_text(yaml.safe_dump({"hydra": {"runtime": runtime}}))
    return folder


@pytest.mark.parametrize("name", [name for name in ODD_NAMES if "/" not in name and name != "null"])
def test_a_run_in_a_folder_of_any_name_is_resumed(name, tmp_path, monkeypatch):
    folder = saved_run(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    expanded = expand_resume(["seed=1", f"resume={name}"])
    (resume,) = (argument for argument in expanded if argument.startswith("resume="))
    (run_dir,) = (argument for argument in expanded if argument.startswith("hydra.run.dir="))
    cfg = OmegaConf.create({"resume": value_of(resume), "run_dir": value_of(run_dir)})
    assert cfg.resume == cfg.run_dir == str(folder)
    assert "seed=1" in expanded and len(expanded) == 6


def test_a_run_of_a_version_without_finish_can_be_finished(tmp_path):
    folder = saved_run(tmp_path / "run")
    (finish,) = (argument for argument in expand_resume([f"resume={folder}", "finish=true"]) if "finish" in argument)
    assert "finish" not in OmegaConf.load(folder / ".hydra" / "config.yaml")
    parsed = OverridesParser.create().parse_override(finish)
    assert parsed.is_force_add() and parsed.key_or_group == "finish" and parsed.value() is True


def test_the_home_directory_is_known_as_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    saved_run(tmp_path / "run")
    assert f'resume="{tmp_path}/run"' in expand_resume(["resume=~/run"])
    assert f'resume="{tmp_path}/run"' in expand_resume(['resume="~/run"'])
    assert with_home("~/outputs") == f"{tmp_path}/outputs"
    assert FixedProfile(path="~/profile.txt").path == f"{tmp_path}/profile.txt"
    assert ModelSource(name="x", path="~/model").path == f"{tmp_path}/model"
    assert ModelSource(name="x", path="org/model").path == "org/model"
    (tmp_path / "text.txt").write_text("words")
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        cfg = compose("config", ["data.source='~/text.txt'", "eval.datasets=['~/text.txt']", "outputs='~/outputs'"])
    job = build_job(cfg, tmp_path)
    assert job.data.source == job.eval.datasets[0] == f"{tmp_path}/text.txt"
    assert job.outputs == tmp_path / "outputs"


@pytest.mark.parametrize("name", [name for name in ODD_NAMES if name[:1] != "[" and name not in ("null", "1")])
def test_a_value_that_needs_quotes_is_shown_with_them(name):
    (line,) = suggest_quotes(["seed=1", f"data.source={name}.txt", "--cfg", "data.window=64"])
    (argument,) = shlex.split(line.partition(", write ")[2])
    assert OmegaConf.create({"value": value_of(argument)}).value == f"{name}.txt"


@pytest.mark.parametrize("argument", ["data.source=dir/a-b_1.txt", "compress.bits=[2,3]", "model=hf", "x='a b'", "-m"])
def test_a_value_that_needs_no_quotes_is_not_mentioned(argument):
    assert suggest_quotes([argument]) == []


def test_the_folder_of_a_job_is_named_after_its_overrides_and_needs_no_quotes():
    assert folder_name(2, "budget-3bit_seed-1") == "2_budget-3bit_seed-1"
    assert folder_name(0, "") == "0"
    name = folder_name(10, "data.source-../été (1)=,/a.txt_" + "x" * 300)
    assert name.startswith("10_data.source-..-") and len(name) <= 200
    assert value_of(f"resume={name}") == name


def test_jobs_of_a_sweep_have_different_folders_whatever_is_swept(monkeypatch):
    import_module("evopress.run")  # has the function for names

    def folder(number: int, *overrides: str) -> str:
        with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
            cfg = compose("config", list(overrides), return_hydra_config=True)
        cfg.hydra.job.num = number
        monkeypatch.setattr(HydraConfig.instance(), "cfg", cfg)
        return cfg.hydra.sweep.subdir

    long = [f"data.{split}_tokens=1024" for split in ("calibration", "search", "validation", "test")]
    assert folder(0, "data.window=64", "outputs=here") == "0_data.window-64"
    assert "_search.candidates-3" in folder(1, *long, "outputs=here", "search.candidates=3", "search=random")
    assert folder(2, *long, *long, *long, "data.text_column=a") != folder(3, *long, *long, *long, "data.text_column=b")


def test_a_run_says_where_it_was_started(tmp_path):
    assert start_folder(saved_run(tmp_path / "a", cwd="/somewhere")) == Path("/somewhere")
    for number, runtime in enumerate([{}, {"cwd": "here"}, {"cwd": 3}]):
        assert start_folder(saved_run(tmp_path / f"b{number}", **runtime)) is None
    (tmp_path / "a" / ".hydra" / "hydra.yaml").write_text("[")
    assert start_folder(tmp_path / "a") is None
    assert start_folder(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "2"}, "RANK and MASTER_ADDR and MASTER_PORT not set: for one process, unset WORLD_SIZE"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "MASTER_ADDR and MASTER_PORT not set"),
        ({"WORLD_SIZE": "two", "RANK": "0", "MASTER_ADDR": "x", "MASTER_PORT": "1"}, "'two' but that is not a number"),
    ],
    ids=str,
)
def test_an_incomplete_announcement_of_processes_is_refused(environment, message, monkeypatch):
    for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    distributed.join()
    for name, value in environment.items():
        monkeypatch.setitem(os.environ, name, value)
    with pytest.raises(ValueError, match=message):
        distributed.join()
