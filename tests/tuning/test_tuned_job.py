"""A whole job with the stage `tune`: its results, its checkpoints and its report."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from evopress.compressors.drop import Drop
from evopress.compressors.gguf import GGUF
from evopress.compressors.rtn import RTN
from evopress.compressors.sparsegpt import SparseGPT
from evopress.export import Export
from evopress.pipeline import run_job
from evopress.report.read_run import read_run
from evopress.search.baselines.uniform import Uniform
from evopress.space.budget import Budget
from evopress.tuning.settings import Tuning
from tests.jobs import small_job

TUNE = Tuning(tokens=32 * 12, checks=3, scales_lr=5e-3, norms_lr=5e-3)

JOBS = {
    "integers": {
        "compress": RTN(bits=[2, 3], group_size=32, symmetric=True),
        "budget": Budget(metric="bits", target=2),
        "export": Export(formats=["hf", "compressed_tensors"], dtype="float32"),
    },
    "blocks": {
        "compress": GGUF(types=["Q4_1", "Q4_0"]),
        "budget": Budget(metric="bits", target=4.5),
        "tune": replace(TUNE, scales_lr=1e-3, norms_lr=1e-3),
        "export": Export(formats=["gguf"]),
    },
    "sparse": {
        "compress": SparseGPT(base=0.5),
        "budget": Budget(metric="sparsity", target=0.5),
        "export": Export(formats=["hf"], dtype="float32"),
    },
    "kept weights": {
        "compress": SparseGPT(base=0.5),
        "budget": Budget(metric="sparsity", target=0.5),
        "tune": replace(TUNE, weights_lr=1e-3),
        "export": Export(formats=["hf"], dtype="float32"),
    },
    "weights next to drops": {
        "compress": Drop(),
        "budget": Budget(metric="drop", target=1 / 3),
        "tune": replace(TUNE, weights_lr=1e-3),
        "export": Export(formats=["zeroed"], dtype="float32"),
    },
    "drops": {
        "compress": Drop(),
        "budget": Budget(metric="drop", target=1 / 3),
        "export": Export(formats=["zeroed"], dtype="float32"),
    },
}


def results_of(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("kind", JOBS)
def test_the_tuned_model_is_measured_exported_and_verified(kind, model_folders, tmp_path):
    job = small_job(
        tmp_path / "run", tmp_path, model_folders("llama"), **{"search": Uniform(), "tune": TUNE, **JOBS[kind]}
    )
    run_job(job)
    results = results_of(job.folder)
    tuning = results["tuning"]["tuned"]
    assert tuning["kept"], "the text of the job has something to learn"
    assert tuning["kl_validation_after"] < tuning["kl_validation_before"]
    assert results["tuned"]["kl"]["pydoc"] != results["searched"]["kl"]["pydoc"]
    assert results["tuned"]["size_bytes"] == results["searched"]["size_bytes"]
    assert set(results["exports"]) == set(job.export.formats), "each was compared with the tuned model"
    run = read_run(job.folder)
    assert list(run.candidates) == ["dense", "uniform", "searched", "tuned"]
    assert "tuned" in (job.folder / "report.html").read_text()
    card = (job.folder / "checkpoints" / job.export.formats[0] / "README.md").read_text()
    assert "scales and norms tuned" in card
    assert ("weights" in tuning["changed"]) == ("and weights tuned" in card) == (job.tune.weights_lr > 0)
    metrics = [json.loads(line) for line in (job.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics if "tune/loss" in line] == list(range(1, 13))
    assert [line["step"] for line in metrics if "tune/kl_validation" in line] == [0, 4, 8, 12]


@pytest.mark.slow
def test_a_finished_run_is_resumed_to_tune_the_uniform_profile_too(model_folders, tmp_path):
    tune = Tuning(tokens=32 * 4, checks=2, scales_lr=5e-3)
    settings = {"compress": RTN(bits=[2, 3, 4], group_size=32), "search": Uniform()}
    job = small_job(tmp_path / "run", tmp_path, model_folders("llama"), tune=tune, **settings)
    run_job(job)
    before, tuned = results_of(job.folder), (job.folder / "tuned.safetensors").read_bytes()
    job = replace(job, tune=replace(tune, compare_uniform=True))
    run_job(job)
    results = results_of(job.folder)
    assert results["uniform_tuned"]["kl"] == results["tuned"]["kl"] == before["tuned"]["kl"], (
        "uniform is what was found"
    )
    assert results["tuning"]["uniform_tuned"]["checks"] == results["tuning"]["tuned"]["checks"]
    assert (job.folder / "tuned.safetensors").read_bytes() == tuned, "a finished tuning is read from its file"
    run = read_run(job.folder)
    assert list(run.candidates) == ["dense", "uniform", "searched", "tuned", "uniform_tuned"]
    assert list(run.tuning) == ["tuned", "uniform_tuned"]
    page = (job.folder / "report.html").read_text()
    assert "uniform_tuned" in page
    assert (job.folder / "plots/tuning.png").is_file()
    assert "uniform_tuned: from" in page, "the plot has both curves"
    metrics = [json.loads(line) for line in (job.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics if "tune/uniform_kl_validation" in line] == [0, 2, 4]


def test_without_the_stage_nothing_is_tuned(model_folders, tmp_path):
    stages = ("database", "search", "evaluate")
    job = small_job(tmp_path / "run", tmp_path, model_folders("llama"), search=Uniform(), tune=TUNE, stages=stages)
    run_job(job)
    assert not results_of(job.folder).keys() & {"tuned", "tuning"}
    assert "tune" not in results_of(job.folder)["seconds"]
