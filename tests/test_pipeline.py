"""The whole job on tiny random models: load, database, search, evaluate, resume."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from evopress.compressors.drop import Drop
from evopress.compressors.gguf import GGUF
from evopress.compressors.gptq import GPTQ
from evopress.compressors.rtn import RTN
from evopress.compressors.sparsegpt import SparseGPT
from evopress.evaluation.eval_settings import Eval
from evopress.evaluation.evaluator import Evaluator
from evopress.inspection.profiles import inspect_profile
from evopress.pipeline import run_job
from evopress.search.baselines.additive import Additive
from evopress.search.guided import Guided
from evopress.search.refinement import Refinement
from evopress.search.selection import Stage
from evopress.space.budget import Budget
from evopress.space.settings import SpaceSettings
from tests.jobs import SEARCH, small_job
from tests.tiny_models import FAMILIES

JOINT = SpaceSettings(trade="any", drops="subblock")


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_the_whole_job_runs_for_every_family(family, tmp_path, model_folders):
    run_job(small_job(tmp_path / "run", tmp_path, model_folders(family)))
    measured = results(tmp_path / "run")
    assert measured["budget"] == {"metric": "bits", "target": 3.0, "achieved": 3.0}
    assert measured["dense"]["kl"]["pydoc"] == pytest.approx(0, abs=1e-6)
    assert measured["uniform"]["kl"]["pydoc"] > 0
    assert measured["searched"]["bits_per_weight"] == 3.0
    assert measured["searched"]["size_bytes"] < measured["dense"]["size_bytes"]
    lines = (tmp_path / "run" / "profile.txt").read_text().splitlines()
    assert {line.rpartition(": ")[2] for line in lines} <= {"2", "3", "4"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("compress", "budget"),
    [
        (SparseGPT(base=0.5, num_levels=2), Budget(metric="sparsity", target=0.5)),
        (Drop(), Budget(metric="drop", target=1 / 3)),
        (Drop(granularity="block"), Budget(metric="drop", target=1 / 3)),
        (GPTQ(bits=[2, 4, 8], group_size=32), Budget(metric="bits", target=3)),
        (GPTQ(bits=[2, 3, 4], group_size=32), Budget(metric="bits", target=2.5)),
        (GPTQ(bits=[2, 3, 4], group_size=32), Budget(metric="size", target="125KB")),
        (GPTQ(bits=[2, 3, 4], group_size=[16, 32]), Budget(metric="size", target="125KB")),
    ],
    ids=lambda value: str(value)[:24],
)
def test_every_budget_is_met_as_closely_as_the_levels_allow(compress, budget, tmp_path, model_folders):
    run_job(small_job(tmp_path / "run", tmp_path, model_folders("llama"), compress=compress, budget=budget))
    measured = results(tmp_path / "run")
    if budget.metric == "size":
        assert 124_000 < measured["budget"]["achieved"] <= 125_000
        assert measured["searched"]["size_bytes"] == measured["budget"]["achieved"]
    else:
        assert measured["budget"]["achieved"] == pytest.approx(float(budget.target))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("compress", "budget", "drops"),
    [
        (GPTQ(bits=[2, 3, 4], group_size=32), Budget(metric="bits", target=2.5), "subblock"),
        (GPTQ(bits=[2, 3, 4], group_size=32), Budget(metric="bits", target=1.5), "block"),
        (RTN(bits=(2, 3, 4), group_size=32, range="minmax"), Budget(metric="size", target="125KB"), "subblock"),
        (GGUF(types=["Q4_0", "Q8_0"]), Budget(metric="size", target="100KB"), "subblock"),
        (SparseGPT(base=0.5, num_levels=2), Budget(metric="sparsity", target=0.5), "subblock"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_levels_and_drops_together_meet_the_budget_and_appear_in_all_files(
    compress, budget, drops, tmp_path, model_folders
):
    space = SpaceSettings(trade="any", drops=drops)
    settings = dict(
        compress=compress, budget=budget, space=space, search=replace(SEARCH, maximize=True)
    )  # the worst profile is the one with drops
    folder = tmp_path / "run"
    profile = run_job(small_job(folder, tmp_path, model_folders("llama"), **settings))
    measured, saved = results(folder), json.loads((folder / "profile.json").read_text())
    dropped = [unit["unit"] for unit in saved["units"] if unit["label"] == "dropped" and "proj" not in unit["unit"]]
    assert dropped
    assert sum(unit["cost"] for unit in saved["units"]) == saved["cost"]
    stored = sum(unit["size_bytes"] for unit in saved["units"])
    if budget.metric == "size":
        limit = int(budget.target[:-2]) * 1000
        assert 0.96 * limit < measured["budget"]["achieved"] <= limit
        assert measured["searched"]["size_bytes"] == measured["budget"]["achieved"]
    elif budget.metric == "bits":
        assert budget.target - 0.06 < measured["budget"]["achieved"] <= budget.target
        assert measured["searched"]["bits_per_weight"] == pytest.approx(measured["budget"]["achieved"])
    else:
        assert measured["budget"]["achieved"] >= budget.target
    weights = measured["searched"]["bits_per_weight_with_scales"] * 3 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128) / 8
    assert compress.compresses_embeddings or stored == pytest.approx(weights)
    lines = [line.rpartition(": ") for line in (folder / "profile.txt").read_text().splitlines()]
    assert {name for name, _, value in lines if name in dropped and value == "1"} == set(dropped)
    assert "dropped" in (folder / "report.html").read_text() and not inspect_profile(folder / "profile.json").defects
    again = run_job(small_job(tmp_path / "again", tmp_path, model_folders("llama"), **settings))
    assert again == profile


@pytest.mark.slow
@pytest.mark.parametrize("drops", ["subblock", "block"])
def test_the_whole_job_runs_with_a_guided_search_of_levels_and_drops(drops, tmp_path, model_folders):
    guided = Guided(
        rounds=2,
        table_tokens=64,
        dampings=[1.0, 4.0],
        line_tokens=64,
        refinements=2,
        refinement=Refinement(table_tokens=64, share=0.5, tokens=64, line_tokens=64),
        generations=2,
        offspring=4,
        stages=[Stage(survivors=1, tokens=64)],
    )
    settings = dict(search=guided, space=SpaceSettings(trade="any", drops=drops))
    settings["budget"] = Budget(metric="size", target="105KB")
    profiles = [
        run_job(small_job(tmp_path / name, tmp_path, model_folders("llama"), stages=stages, **settings))
        for name, stages in (("a", ("plan", "database", "search", "evaluate")), ("b", ("database", "search")))
    ]
    assert profiles[0] == profiles[1]
    assert 100_000 < results(tmp_path / "a")["budget"]["achieved"] <= 105_000


@pytest.mark.slow
@pytest.mark.parametrize(
    "compress", [RTN(bits=(2, 3, 4), group_size=32), GGUF(types=["Q4_0", "Q8_0"])], ids=["rtn", "gguf"]
)
def test_additive_search_on_layer_errors_handles_drops(compress, tmp_path, model_folders):
    settings = dict(compress=compress, search=Additive(errors="layer", tokens=32), space=JOINT)
    profile = run_job(
        small_job(
            tmp_path / "run", tmp_path, model_folders("llama"), budget=Budget(metric="size", target="100KB"), **settings
        )
    )
    assert profile and results(tmp_path / "run")["budget"]["achieved"] <= 100_000


@pytest.mark.slow
def test_several_budgets_with_drops_are_all_met(tmp_path, model_folders):
    search = Guided(
        rounds=1,
        table_tokens=32,
        dampings=[1.0],
        line_tokens=32,
        generations=0,
        offspring=1,
        stages=[Stage(survivors=1, tokens=32)],
    )
    settings = dict(search=search, space=JOINT, targets=(3.0, 2.0, 1.0))
    run_job(small_job(tmp_path / "run", tmp_path, model_folders("llama"), **settings))
    rows = (tmp_path / "run" / "front.csv").read_text().splitlines()
    achieved = [float(row.split(",")[1]) for row in rows[1:]]
    assert all(0.9 * target < cost <= target for target, cost in zip((3, 2, 1), achieved, strict=True))


def test_a_job_without_search_stops_after_the_database(tmp_path, model_folders):
    assert run_job(small_job(tmp_path / "run", tmp_path, model_folders("llama"), stages=("database",))) is None
    assert list(tmp_path.glob("databases/tiny/*/manifest.json"))
    assert not (tmp_path / "run" / "profile.json").exists()


@pytest.mark.slow
def test_another_budget_reuses_the_database(tmp_path, model_folders):
    model = model_folders("llama")
    run_job(small_job(tmp_path / "a", tmp_path, model))
    (manifest,) = tmp_path.glob("databases/tiny/*/manifest.json")
    written = manifest.stat().st_mtime_ns
    run_job(small_job(tmp_path / "b", tmp_path, model, budget=Budget(metric="bits", target=2.5)))
    assert list(tmp_path.glob("databases/tiny/*/manifest.json")) == [manifest]
    assert manifest.stat().st_mtime_ns == written


class Killed(BaseException):
    """Simulates a kill: no `except Exception` catches it."""


@pytest.mark.slow
@pytest.mark.parametrize("space", [SpaceSettings(), JOINT], ids=["levels", "joint"])
@pytest.mark.parametrize("evaluations", [1, 4])
def test_a_killed_run_resumes_to_the_same_bytes(evaluations, space, tmp_path, model_folders, monkeypatch):
    model = model_folders("llama")
    run_job(small_job(tmp_path / "uninterrupted", tmp_path / "outputs", model, space=space))
    remaining = iter(range(evaluations))
    evaluate = Evaluator.evaluate

    def interrupted(self, *args):
        if next(remaining, None) is None:
            raise Killed
        return evaluate(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "evaluate", interrupted)
        with pytest.raises(Killed):
            run_job(small_job(tmp_path / "killed", tmp_path / "outputs2", model, space=space))
    run_job(small_job(tmp_path / "killed", tmp_path / "outputs2", model, space=space))
    for name in ("search.jsonl", "profile.json", "profile.txt"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "uninterrupted" / name).read_bytes()


def test_a_killed_database_build_resumes_to_the_same_bytes(tmp_path, model_folders, monkeypatch):
    model = model_folders("llama")
    run_job(small_job(tmp_path / "a", tmp_path / "uninterrupted", model, stages=("database",)))
    compress, remaining = GPTQ.compress, iter(range(6))  # a block has four groups

    def interrupted(self, group):
        if next(remaining, None) is None:
            raise Killed
        return compress(self, group)

    with monkeypatch.context() as patch:
        patch.setattr(GPTQ, "compress", interrupted)
        with pytest.raises(Killed):
            run_job(small_job(tmp_path / "b", tmp_path / "killed", model, stages=("database",)))
    (folder,) = (tmp_path / "killed" / "databases" / "tiny").iterdir()
    assert [path.name for path in sorted(folder.glob("*.safetensors"))] == ["block-000.safetensors"]
    run_job(small_job(tmp_path / "b", tmp_path / "killed", model, stages=("database",)))
    (uninterrupted,) = (tmp_path / "uninterrupted" / "databases" / "tiny").iterdir()
    assert folder.name == uninterrupted.name
    for path in uninterrupted.iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_a_finished_run_is_not_repeated(tmp_path, model_folders, monkeypatch):
    model = model_folders("llama")
    run_job(small_job(tmp_path / "run", tmp_path, model))
    written = (tmp_path / "run" / "results.json").read_bytes()
    monkeypatch.setattr(Evaluator, "evaluate", None)
    monkeypatch.setattr("evopress.evaluate_stage.measure_candidates", None)
    run_job(small_job(tmp_path / "run", tmp_path, model))
    assert (tmp_path / "run" / "results.json").read_bytes() == written


@pytest.mark.slow
def test_other_evaluation_settings_repeat_the_evaluation_but_not_the_search(tmp_path, model_folders, monkeypatch):
    model = model_folders("llama")
    run_job(small_job(tmp_path / "run", tmp_path, model))
    monkeypatch.setattr(Evaluator, "evaluate", None)
    (tmp_path / "numbers.txt").write_text("\n\n".join(f"The square of {n} is {n * n}." for n in range(2000)))
    datasets = [str(tmp_path / "numbers.txt")]
    run_job(small_job(tmp_path / "run", tmp_path, model, eval=Eval(datasets=datasets)))
    assert results(tmp_path / "run")["done"]["eval"]["datasets"] == datasets


@pytest.mark.slow
def test_a_run_directory_with_other_settings_is_refused(tmp_path, model_folders):
    model = model_folders("llama")
    run_job(small_job(tmp_path / "run", tmp_path, model))
    with pytest.raises(ValueError, match=r"other settings \(seed: 0 in the file, 1 now\)"):
        run_job(small_job(tmp_path / "run", tmp_path, model, seed=1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": Budget(metric="bits", target=1)}, "raise budget.target to at least 2"),
        ({"budget": Budget(metric="sparsity", target=0.5)}, "use budget=3bit or budget=size"),
        ({"compress": Drop()}, "use budget=drop25"),
        ({"compress": GPTQ(group_size=[16, 32])}, "use budget=size, or a single compress.group_size"),
        ({"compress": Drop(), "space": JOINT}, "set space.drops=none"),
        ({"stages": ("serach",)}, "stages contains 'serach'"),
        ({"eval": Eval(include_path="nowhere")}, "eval.include_path"),
    ],
)
def test_conflicting_settings_are_refused_before_anything_is_loaded(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run_job(small_job(tmp_path / "run", tmp_path, tmp_path / "no-such-model", **changes))


def test_an_unreachable_budget_is_refused_before_the_database_is_built(tmp_path, model_folders):
    with pytest.raises(ValueError, match="most compressed profile"):
        run_job(
            small_job(tmp_path / "run", tmp_path, model_folders("llama"), budget=Budget(metric="size", target="10KB"))
        )
    assert not (tmp_path / "databases").exists()


@pytest.mark.slow
def test_the_text_profile_lists_every_layer_once(tmp_path, model_folders):
    profile = run_job(small_job(tmp_path / "run", tmp_path, model_folders("llama")))
    names = [line.rpartition(":")[0] for line in (tmp_path / "run" / "profile.txt").read_text().splitlines()]
    assert len(names) == len(set(names)) == len(profile)
