"""Comparisons of several runs, and the command line."""

import json
from pathlib import Path
from random import Random

import pytest
import yaml

from evopress.report import write_comparison
from evopress.report.__main__ import main
from evopress.report.comparison import Point, pareto_front
from evopress.report.comparison_page import differing_settings
from evopress.report.read_run import read_run
from evopress.report.run_folders import find_runs
from tests.report.html_page import Page
from tests.run_folders import make_run


def test_the_pareto_front_is_the_set_of_undominated_points():
    rng = Random(0)
    points = [Point("m", "searched", rng.randint(1, 20), rng.randint(1, 20)) for _ in range(60)]

    def is_dominated(point: Point) -> bool:
        return any(
            other.size <= point.size and other.kl <= point.kl and (other.size, other.kl) != (point.size, point.kl)
            for other in points
        )

    assert {(p.size, p.kl) for p in pareto_front(points)} == {(p.size, p.kl) for p in points if not is_dominated(p)}


@pytest.mark.slow
def test_a_comparison_has_a_row_per_run_and_links_to_existing_reports(tmp_path):
    folders = [make_run(tmp_path / name, seed=seed) for seed, name in enumerate(("one", "two"))]
    (folders[0] / "report.html").touch()
    page = Page(write_comparison(folders, tmp_path / "sweep.html"))
    assert [attributes["href"] for tag, attributes in page.tags if tag == "a"] == ["one/report.html"]
    for folder in folders:
        results = json.loads((folder / "results.json").read_text())
        assert results["searched"]["kl"]["pydoc"] in page.numbers
        assert results["searched"]["size_bytes"] in page.numbers
    assert (tmp_path / "sweep-plots/pareto-0.png").exists()
    assert (tmp_path / "sweep-plots/difference-1.png").exists()
    choices = [read_run(folder).choices for folder in folders]
    num_different = sum(ours.level != theirs.level for ours, theirs in zip(*choices, strict=True))
    alts = [attributes["alt"] for tag, attributes in page.tags if tag == "img"]
    assert any(f"{num_different} units differ" in alt for alt in alts)


def test_a_comparison_lists_only_settings_that_differ(tmp_path):
    folders = [make_run(tmp_path / "one"), make_run(tmp_path / "two")]
    config = yaml.safe_load((folders[1] / ".hydra/config.yaml").read_text())
    config["budget"]["target"] = 4
    (folders[1] / ".hydra/config.yaml").write_text(yaml.safe_dump(config))
    assert differing_settings([read_run(folder) for folder in folders]) == [("budget.target", ["3", "4"])]


@pytest.mark.slow
def test_the_command_reports_every_run_below_a_folder(tmp_path, capsys):
    folders = [make_run(tmp_path / "sweep" / name) for name in ("0", "1")]
    for folder in folders:
        (folder / "profile.json").unlink()
    assert find_runs(tmp_path) == folders
    assert main([str(tmp_path / "sweep")]) == 0
    written = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert written == [folder / "report.html" for folder in folders] + [tmp_path / "sweep/comparison.html"]
    assert all(path.is_file() for path in written)


def test_a_comparison_of_several_folders_goes_to_the_working_directory(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "seconds.json").write_text("{}")
    assert main(["one", "two"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "comparison.html"
    assert (tmp_path / "comparison.html").is_file()


def test_exported_checkpoints_are_not_runs(tmp_path):
    folder = make_run(tmp_path / "run")
    for checkpoint in (folder / "checkpoint/hf", tmp_path / "hf"):
        checkpoint.mkdir(parents=True)
        (checkpoint / "profile.json").write_bytes((folder / "profile.json").read_bytes())
        (checkpoint / "config.json").write_text("{}")
    (folder / "checkpoint/results.json").touch()
    assert find_runs(tmp_path) == [folder]


def test_the_command_refuses_a_folder_without_runs(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err
