"""The whole job on tiny random models of every family: load, database, search, evaluate, resume."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from evopress.compressors.drop import Drop
from evopress.compressors.gguf import GGUF
from evopress.compressors.gptq import GPTQ
from evopress.compressors.rtn import RTN
from evopress.compressors.sparsegpt import SparseGPT
from evopress.data.settings import Data
from evopress.evaluation.eval_settings import Eval
from evopress.evaluation.evaluator import Evaluator, EvaluatorSettings
from evopress.inspection.profiles import inspect_profile
from evopress.models.source import ModelSource
from evopress.pipeline import Job, run_job
from evopress.runtime.tracking import Tracker
from evopress.search.baselines.additive import Additive
from evopress.search.evolution import Evolution
from evopress.search.guided import Guided
from evopress.search.refinement import Refinement
from evopress.search.selection import Stage
from evopress.space.budget import Budget
from evopress.space.settings import SpaceSettings
from tests.tiny_models import FAMILIES, save_tiny

SEARCH = Evolution(
    generations=3,
    offspring=4,
    stages=[Stage(survivors=2, tokens=32), Stage(survivors=1, tokens=64)],
    initial_candidates=4,
    initial_tokens=32,
)


JOINT = SpaceSettings(trade="any", drops="subblock")


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory):
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            save_tiny(family, made[family])
        return made[family]

    return folder


def job(folder: Path, outputs: Path, model: Path, **changes) -> Job:
    settings = dict(
        model=ModelSource(name="tiny", path=str(model), dtype="float32", device="cpu", max_perplexity=1e6),
        data=Data(
            source="pydoc", window=32, calibration_tokens=256, search_tokens=256, validation_tokens=64, test_tokens=128
        ),
        compress=GPTQ(bits=[2, 3, 4], group_size=32),
        space=SpaceSettings(),
        budget=Budget(metric="bits", target=3),
        search=SEARCH,
        evaluator=EvaluatorSettings(),
        eval=Eval(),
        tracker=Tracker(),
        seed=0,
        folder=folder,
        outputs=outputs,
    )
    return Job(**{**settings, **changes})


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_goes_through_the_whole_job(family, tmp_path, model_folders):
    run_job(job(tmp_path / "run", tmp_path, model_folders(family)))
    found = results(tmp_path / "run")
    assert found["budget"] == {"metric": "bits", "target": 3.0, "achieved": 3.0}
    assert found["dense"]["kl"]["pydoc"] == pytest.approx(0, abs=1e-6)
    assert found["uniform"]["kl"]["pydoc"] > 0
    assert found["searched"]["bits_per_weight"] == 3.0
    assert found["searched"]["size_bytes"] < found["dense"]["size_bytes"]
    lines = (tmp_path / "run" / "profile.txt").read_text().splitlines()
    assert {line.rpartition(": ")[2] for line in lines} <= {"2", "3", "4"}


@pytest.mark.parametrize(
    ("compress", "budget"),
    [
        (SparseGPT(base=0.5, num_levels=2), Budget(metric="sparsity", target=0.5)),
        (Drop(), Budget(metric="drop", target=1 / 3)),
        (Drop(granularity="block"), Budget(metric="drop", target=1 / 3)),
        (GPTQ(bits=[2, 4, 8], group_size=32), Budget(metric="bits", target=3)),
        (GPTQ(bits=[2, 3, 4], group_size=32), Budget(metric="bits", target=2.5)),
        (GPTQ(bits=[2, 3, 4], group_size=32), Budget(metric="size", target="125KB")),
    ],
    ids=lambda value: str(value)[:24],
)
def test_every_budget_is_met_exactly_or_as_nearly_as_levels_allow(compress, budget, tmp_path, model_folders):
    run_job(job(tmp_path / "run", tmp_path, model_folders("llama"), compress=compress, budget=budget))
    found = results(tmp_path / "run")
    if budget.metric == "size":
        assert 124_000 < found["budget"]["achieved"] <= 125_000
        assert found["searched"]["size_bytes"] == found["budget"]["achieved"]
    else:
        assert found["budget"]["achieved"] == pytest.approx(float(budget.target))


@pytest.mark.parametrize(
    ("compress", "budget", "drops"),
    [
        (GPTQ(bits=[2, 3, 4], group_size=32), Budget(metric="bits", target=2.5), "subblock"),
        (GPTQ(bits=[2, 3, 4], group_size=32), Budget(metric="bits", target=1.5), "block"),
        (RTN(bits=(2, 3, 4), group_size=32), Budget(metric="size", target="125KB"), "subblock"),
        (GGUF(types=["Q4_0", "Q8_0"]), Budget(metric="size", target="100KB"), "subblock"),
        (SparseGPT(base=0.5, num_levels=2), Budget(metric="sparsity", target=0.5), "subblock"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_levels_and_drops_together_meet_the_budget_and_are_told_everywhere(
    compress, budget, drops, tmp_path, model_folders
):
    space = SpaceSettings(trade="any", drops=drops)
    settings = dict(
        compress=compress, budget=budget, space=space, search=replace(SEARCH, maximize=True)
    )  # the worst drops
    folder = tmp_path / "run"
    profile = run_job(job(folder, tmp_path, model_folders("llama"), **settings))
    found, told = results(folder), json.loads((folder / "profile.json").read_text())
    dropped = [unit["unit"] for unit in told["units"] if unit["label"] == "dropped" and "proj" not in unit["unit"]]
    assert dropped
    assert sum(unit["cost"] for unit in told["units"]) == told["cost"]
    stored = sum(unit["size_bytes"] for unit in told["units"])
    if budget.metric == "size":
        limit = int(budget.target[:-2]) * 1000
        assert 0.96 * limit < found["budget"]["achieved"] <= limit
        assert found["searched"]["size_bytes"] == found["budget"]["achieved"]
    elif budget.metric == "bits":
        assert budget.target - 0.06 < found["budget"]["achieved"] <= budget.target
        assert found["searched"]["bits_per_weight"] == pytest.approx(found["budget"]["achieved"])
    else:
        assert found["budget"]["achieved"] >= budget.target
    weights = found["searched"]["bits_per_weight_with_scales"] * 3 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128) / 8
    assert compress.compresses_embeddings or stored == pytest.approx(weights)
    lines = [line.rpartition(": ") for line in (folder / "profile.txt").read_text().splitlines()]
    assert {name for name, _, value in lines if name in dropped and value == "1"} == set(dropped)
    assert "dropped" in (folder / "report.html").read_text() and not inspect_profile(folder / "profile.json").damages
    again = run_job(job(tmp_path / "again", tmp_path, model_folders("llama"), **settings))
    assert again == profile


@pytest.mark.parametrize("drops", ["subblock", "block"])
def test_a_guided_search_of_levels_and_drops_goes_through_the_whole_job(drops, tmp_path, model_folders):
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
    found = [
        run_job(job(tmp_path / name, tmp_path, model_folders("llama"), stages=stages, **settings))
        for name, stages in (("a", ("plan", "database", "search", "evaluate")), ("b", ("database", "search")))
    ]
    assert found[0] == found[1]
    assert 100_000 < results(tmp_path / "a")["budget"]["achieved"] <= 105_000


@pytest.mark.parametrize(
    "compress", [RTN(bits=(2, 3, 4), group_size=32), GGUF(types=["Q4_0", "Q8_0"])], ids=["rtn", "gguf"]
)
def test_layer_errors_count_a_drop_as_all_of_its_layers_at_zero(compress, tmp_path, model_folders):
    settings = dict(compress=compress, search=Additive(errors="layer", tokens=32), space=JOINT)
    profile = run_job(
        job(
            tmp_path / "run", tmp_path, model_folders("llama"), budget=Budget(metric="size", target="100KB"), **settings
        )
    )
    assert profile and results(tmp_path / "run")["budget"]["achieved"] <= 100_000


def test_many_budgets_start_from_the_drops_of_their_neighbour(tmp_path, model_folders):
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
    run_job(job(tmp_path / "run", tmp_path, model_folders("llama"), **settings))
    rows = (tmp_path / "run" / "front.csv").read_text().splitlines()
    achieved = [float(row.split(",")[1]) for row in rows[1:]]
    assert all(0.9 * target < found <= target for target, found in zip((3, 2, 1), achieved, strict=True))


def test_a_job_without_search_stops_after_the_database(tmp_path, model_folders):
    assert run_job(job(tmp_path / "run", tmp_path, model_folders("llama"), stages=("database",))) is None
    assert list(tmp_path.glob("databases/tiny/*/manifest.json"))
    assert not (tmp_path / "run" / "profile.json").exists()


def test_another_budget_builds_no_second_database(tmp_path, model_folders):
    model = model_folders("llama")
    run_job(job(tmp_path / "a", tmp_path, model))
    (manifest,) = tmp_path.glob("databases/tiny/*/manifest.json")
    written = manifest.stat().st_mtime_ns
    run_job(job(tmp_path / "b", tmp_path, model, budget=Budget(metric="bits", target=2.5)))
    assert list(tmp_path.glob("databases/tiny/*/manifest.json")) == [manifest]
    assert manifest.stat().st_mtime_ns == written


class Killed(BaseException):
    """Like a kill: nothing in the program catches it."""


@pytest.mark.parametrize("space", [SpaceSettings(), JOINT], ids=["levels", "joint"])
@pytest.mark.parametrize("evaluations", [1, 4])
def test_a_killed_run_resumes_to_the_same_bytes(evaluations, space, tmp_path, model_folders, monkeypatch):
    model = model_folders("llama")
    run_job(job(tmp_path / "whole", tmp_path / "outputs", model, space=space))
    left = iter(range(evaluations))
    evaluate = Evaluator.evaluate

    def dying(self, *args):
        if next(left, None) is None:
            raise Killed
        return evaluate(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "evaluate", dying)
        with pytest.raises(Killed):
            run_job(job(tmp_path / "killed", tmp_path / "outputs2", model, space=space))
    run_job(job(tmp_path / "killed", tmp_path / "outputs2", model, space=space))
    for name in ("search.jsonl", "profile.json", "profile.txt"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_killed_database_build_resumes_to_the_same_bytes(tmp_path, model_folders, monkeypatch):
    model = model_folders("llama")
    run_job(job(tmp_path / "a", tmp_path / "whole", model, stages=("database",)))
    compress, left = GPTQ.compress, iter(range(6))  # four groups to a block

    def dying(self, group):
        if next(left, None) is None:
            raise Killed
        return compress(self, group)

    with monkeypatch.context() as patch:
        patch.setattr(GPTQ, "compress", dying)
        with pytest.raises(Killed):
            run_job(job(tmp_path / "b", tmp_path / "killed", model, stages=("database",)))
    (folder,) = (tmp_path / "killed" / "databases" / "tiny").iterdir()
    assert [path.name for path in sorted(folder.glob("*.safetensors"))] == ["block-000.safetensors"]
    run_job(job(tmp_path / "b", tmp_path / "killed", model, stages=("database",)))
    (whole,) = (tmp_path / "whole" / "databases" / "tiny").iterdir()
    assert folder.name == whole.name
    for path in whole.iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()


def test_a_finished_run_is_not_searched_again(tmp_path, model_folders, monkeypatch):
    model = model_folders("llama")
    run_job(job(tmp_path / "run", tmp_path, model))
    written = (tmp_path / "run" / "results.json").read_bytes()
    monkeypatch.setattr(Evaluator, "evaluate", None)
    monkeypatch.setattr("evopress.pipeline.measure_candidates", None)
    run_job(job(tmp_path / "run", tmp_path, model))
    assert (tmp_path / "run" / "results.json").read_bytes() == written


def test_another_evaluation_of_a_finished_search_is_made(tmp_path, model_folders, monkeypatch):
    model = model_folders("llama")
    run_job(job(tmp_path / "run", tmp_path, model))
    monkeypatch.setattr(Evaluator, "evaluate", None)
    run_job(job(tmp_path / "run", tmp_path, model, eval=Eval(datasets=["pydoc"])))
    assert results(tmp_path / "run")["done"]["eval"]["datasets"] == ["pydoc"]


def test_a_run_directory_of_other_settings_is_refused(tmp_path, model_folders):
    model = model_folders("llama")
    run_job(job(tmp_path / "run", tmp_path, model))
    with pytest.raises(ValueError, match=r"other settings \(seed\)"):
        run_job(job(tmp_path / "run", tmp_path, model, seed=1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": Budget(metric="bits", target=1)}, "raise budget.target to at least 2"),
        ({"budget": Budget(metric="sparsity", target=0.5)}, "use budget=3bit or budget=size"),
        ({"compress": Drop()}, "use budget=drop25"),
        ({"compress": Drop(), "space": JOINT}, "set space.drops=none"),
        ({"stages": ("serach",)}, "stages names 'serach'"),
        ({"eval": Eval(include_path="nowhere")}, "eval.include_path"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_is_loaded(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run_job(job(tmp_path / "run", tmp_path, tmp_path / "no-such-model", **changes))


def test_a_budget_out_of_reach_is_refused_before_the_database_is_built(tmp_path, model_folders):
    with pytest.raises(ValueError, match="most compressed profile"):
        run_job(job(tmp_path / "run", tmp_path, model_folders("llama"), budget=Budget(metric="size", target="10KB")))
    assert not (tmp_path / "databases").exists()


def test_the_profile_text_names_every_layer_once(tmp_path, model_folders):
    profile = run_job(job(tmp_path / "run", tmp_path, model_folders("llama")))
    names = [line.rpartition(":")[0] for line in (tmp_path / "run" / "profile.txt").read_text().splitlines()]
    assert len(names) == len(set(names)) == len(profile)
