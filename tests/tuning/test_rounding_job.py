"""A whole job that learns its rounding: results, checkpoints, plan, and settings that do not fit."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from evopress import tune_stage
from evopress.compressors.gguf import GGUF
from evopress.compressors.rtn import RTN
from evopress.export import Export
from evopress.pipeline import run_job
from evopress.planning.planned_run import plan_run
from evopress.planning.stages import estimate_resources
from evopress.report.read_run import read_run
from evopress.search.baselines.uniform import Uniform
from evopress.space.budget import Budget
from evopress.tuning.settings import Tuning
from tests.jobs import small_job

TUNE = Tuning(resolve="signround", resolve_steps=20, resolve_windows=4)
SETTINGS = {
    "compress": RTN(bits=[2, 3], group_size=32, symmetric=True),
    "search": Uniform(),
    "budget": Budget(metric="bits", target=2),
    "tune": TUNE,
}


def results_of(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [0, 32 * 12], ids=["rounding", "rounding and scales"])
def test_the_model_is_measured_exported_and_verified(tokens, model_folders, tmp_path, monkeypatch):
    tune = replace(TUNE, tokens=tokens, checks=3, scales_lr=2e-2, norms_lr=2e-2, rounded_rate=0.25)
    rates = []
    plain = tune_stage.tune
    monkeypatch.setattr(tune_stage, "tune", lambda task, report: [rates.append(task.settings), plain(task, report)][1])
    export = Export(formats=["hf", "compressed_tensors"], dtype="float32")
    job = small_job(tmp_path / "run", tmp_path, model_folders("llama"), **{**SETTINGS, "tune": tune, "export": export})
    planned = next(stage for stage in estimate_resources(plan_run(job)).stages if stage.name == "tune")
    run_job(job)
    assert all(settings.learning_rates == {"scales": 5e-3, "norms": 5e-3} for settings in rates)
    assert len(rates) == (tokens > 0)
    results = results_of(job.folder)
    tuning = results["tuning"]["tuned"]
    assert tuning["changed"] == ["rounding", *(["scales and norms"] if tokens else [])]
    assert tuning["kl_validation_after"] < tuning["rounding"]["kl_before"] == tuning["kl_validation_before"]
    assert all(after < before for before, after in tuning["rounding"]["losses"])
    assert planned.tokens == tuning["token_equivalents"]
    assert results["tuned"]["size_bytes"] == results["searched"]["size_bytes"]
    assert set(results["exports"]) == set(export.formats), "each was compared with the tuned model"
    assert list(read_run(job.folder).candidates) == ["dense", "uniform", "searched", "tuned"]
    card = (job.folder / "checkpoints" / "hf" / "README.md").read_text()
    assert ("rounding tuned and scales and norms tuned" if tokens else "rounding tuned, seed") in card
    (job.folder / "results.json").unlink()
    run_job(job)
    assert results_of(job.folder)["tuned"] == results["tuned"], "what is finished is read from its files"


@pytest.mark.slow
def test_rounding_that_finish_left_out_is_learnt_without_its_file_and_scales_are_tuned_again(model_folders, tmp_path):
    tune = replace(TUNE, tokens=32 * 4, scales_lr=5e-3)
    job = small_job(tmp_path / "run", tmp_path, model_folders("llama"), **{**SETTINGS, "tune": tune})
    run_job(replace(job, stages=("database", "search")))
    run_job(replace(job, finish=True))
    finished = results_of(job.folder)["tuning"]["tuned"]
    assert finished["rounding"]["losses"] == []
    assert finished["token_equivalents"] == (3 + 2) * 64, "only KL was measured, with the dense model: twice, and once"
    assert "tuned" not in results_of(job.folder)
    (job.folder / "tuned.rounding.safetensors").unlink()
    run_job(job)
    assert results_of(job.folder)["tuning"]["tuned"]["changed"] == ["rounding", "scales and norms"]
    assert "tuned" in results_of(job.folder)


def test_weights_are_trained_only_where_some_are_not_rounded(tmp_path):
    job = small_job(tmp_path / "run", tmp_path, tmp_path, **SETTINGS)
    with pytest.raises(ValueError, match=r"compress=rtn has neither: set tune\.weights_lr=0"):
        replace(job, tune=Tuning(tokens=64, weights_lr=1e-3)).check()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compress": GGUF(types=["Q4_0"]), "budget": Budget(metric="bits", target=4.5)}, "compress=gguf has none"),
        ({"calibration_tokens": 32}, "set it to at least 64"),
    ],
    ids=["levels without codes", "one window"],
)
def test_a_job_that_cannot_learn_its_rounding_is_refused(changes, message, tmp_path):
    tokens = changes.pop("calibration_tokens", None)
    job = small_job(tmp_path / "run", tmp_path, tmp_path, **{**SETTINGS, **changes})
    if tokens:
        job = replace(job, data=replace(job.data, calibration_tokens=tokens))
    with pytest.raises(ValueError, match=message):
        job.check()
    replace(job, tune=Tuning(tokens=64)).check()
