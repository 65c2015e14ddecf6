"""Several budgets in one run: one database, and each search starts from the result for the next larger budget."""

import csv
import json
from dataclasses import replace
from itertools import pairwise

import pytest

from evopress.compressors.drop import Drop
from evopress.compressors.gptq import GPTQ
from evopress.pipeline import run_job
from evopress.search.baselines.owl import Owl
from evopress.search.guided import Guided
from evopress.search.selection import Stage
from evopress.search.swaps import Swaps
from evopress.space.budget import Budget
from tests.jobs import small_job

GUIDED = Guided(
    rounds=2,
    table_tokens=32,
    dampings=[1.0, 4.0],
    line_tokens=32,
    generations=0,
    offspring=4,
    stages=[Stage(survivors=1, tokens=32)],
)
SWAPS = Swaps(rounds=2, effect_tokens=32, line_tokens=32)


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_every_target_uses_one_database_and_starts_from_the_profile_of_the_larger_target(tmp_path, model_folders):
    plain = GPTQ(bits=[2, 3, 4], group_size=32, act_order=False, range="minmax", refit_scales=False)
    settings = dict(search=GUIDED, compress=plain, targets=(2.5, 3.5, 3.0))  # widths whose errors differ much
    front = small_job(tmp_path / "run", tmp_path, model_folders("llama"), **settings)
    run_job(front)
    points = read(tmp_path / "run" / "front.csv")
    assert [float(point["target"]) for point in points] == [3.5, 3.0, 2.5]
    assert [float(point["achieved"]) for point in points] == [3.5, 3.0, 2.5]
    assert len(list(tmp_path.glob("databases/*/*"))) == 1
    for larger, smaller in pairwise(points):
        profile = json.loads((tmp_path / "run" / f"{larger['target']}bits" / "results.json").read_text())
        settings = json.loads((tmp_path / "run" / f"{smaller['target']}bits" / "profile.json").read_text())["settings"]
        assert settings["search"]["others"][0] == profile["done"]["candidates"]["searched"]
    assert all(float(point["kl_additive"]) > 0 for point in points)
    archive = read(tmp_path / "run" / "archive.csv")
    assert {row["target"] for row in archive} == {"3.5", "3.0", "2.5"}
    costs = {target: [int(row["cost"]) for row in archive if row["target"] == target] for target in ("3.0", "2.5")}
    assert len(set(costs["3.0"])) == 1  # profiles of the larger budget are lowered to this one
    assert costs["2.5"][-1] * 3.0 == costs["3.0"][-1] * 2.5
    smaller = json.loads((tmp_path / "run" / "3.0bits" / "profile.json").read_text())["settings"]["search"]
    best, *runners_up = smaller["others"]
    last = [[int(level) for level in row["levels"]] for row in archive if row["target"] == "3.5"][-4:]
    assert runners_up and best in last and all(profile in last for profile in runners_up)
    assert (tmp_path / "run" / "front.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "run" / "comparison.html").stat().st_size > 1000


@pytest.mark.slow
def test_an_interrupted_front_resumes_to_the_same_bytes(tmp_path, model_folders):
    drops = dict(compress=Drop(), budget=Budget(metric="drop", target=1 / 3), search=SWAPS, targets=(1 / 3, 2 / 3))
    front = small_job(tmp_path / "run", tmp_path, model_folders("llama"), **drops)
    run_job(front)
    names = ["front.csv", *(f"{target}drop/search.jsonl" for target in (1 / 3, 2 / 3))]
    expected = {name: (tmp_path / "run" / name).read_bytes() for name in names}
    last = tmp_path / "run" / f"{2 / 3}drop"
    lines = (last / "search.jsonl").read_bytes().splitlines(keepends=True)
    (last / "search.jsonl").write_bytes(b"".join(lines[:3]))
    (last / "profile.json").unlink()
    (tmp_path / "run" / "front.csv").unlink()
    run_job(front)
    assert {name: (tmp_path / "run" / name).read_bytes() for name in names} == expected
    assert [point["kl_additive"] for point in read(tmp_path / "run" / "front.csv")] == ["", ""]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": (3.0, 1.5)}, "the smallest level is 2"),
        ({"search": replace(GUIDED, start=(1, 1))}, "search.start does not fit this model"),
        ({"search": Owl(multiples=[5.0], spreads=[0.1], tokens=32), "targets": ()}, "search=owl assigns sparsities"),
    ],
)
def test_settings_that_a_search_refuses_are_an_error_before_the_database_is_built(
    changes, message, tmp_path, model_folders
):
    settings = {"search": GUIDED, "targets": (3.0,), **changes}
    with pytest.raises(ValueError, match=message):
        run_job(small_job(tmp_path / "run", tmp_path, model_folders("llama"), **settings))
    assert not list(tmp_path.glob("databases/*/*"))
