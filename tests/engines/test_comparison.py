"""Runs that measure their checkpoints in an engine. A stand-in takes the place of the engine."""

from dataclasses import replace
from pathlib import Path

import pytest

from evopress.compressors.gguf import GGUF
from evopress.compressors.rtn import RTN
from evopress.evaluation.eval_settings import Eval
from evopress.export import Export
from evopress.job import Job
from evopress.pipeline import run_job
from evopress.report.read_run import read_run
from evopress.report.run_page import write_report
from evopress.runtime.json_files import read_json
from evopress.runtime.tracking import Tracker
from evopress.search.baselines.uniform import Uniform
from evopress.space.budget import Budget
from evopress.space.settings import SpaceSettings
from tests.engines.stand_ins import stand_in
from tests.jobs import small_job

BLOCK_TYPES = GGUF(types=("Q8_0", "Q4_0"), embeddings=False)
FOUR_BITS = RTN(bits=(4, 8), group_size=32, symmetric=True)
GGUF_FILE = {"compress": BLOCK_TYPES, "budget": Budget(metric="bits", target=6), "export": Export(formats=["gguf"])}
FOR_VLLM = {
    "compress": FOUR_BITS,
    "budget": Budget(metric="bits", target=4),
    "space": SpaceSettings(tie="engine"),
    "export": Export(formats=["hf", "compressed_tensors"], engine="vllm"),
}


def job_in(folder: Path, model: Path, engine: str, **changes) -> Job:
    """A job in `folder`/run that searches nothing. The environment of its engine is in `folder`/engine."""
    settings = Eval(prompts=[], engine=engine, engine_python=stand_in(engine, folder / "engine"))
    return small_job(folder / "run", folder, model, **{"search": Uniform(), "eval": settings, **changes})


class Recorder(Tracker):
    def __init__(self):
        self.numbers: dict[str, float] = {}

    def summary(self, metrics):
        self.numbers |= metrics


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "changes"), [("llama_cpp", GGUF_FILE), ("vllm", FOR_VLLM)])
def test_results_card_and_report_have_the_measurements_of_every_model(engine, changes, model_folders, tmp_path):
    pytest.importorskip("gguf")
    tracker = Recorder()
    job = job_in(tmp_path, model_folders("llama"), engine, tracker=tracker, **changes)
    run_job(job)
    entry = read_json(job.folder / "results.json")["engine"]
    models = entry["models"]
    assert list(models) == ["dense", "uniform", "searched"]
    assert entry["tokens"] == 128  # all of the test split
    assert entry["format"] == ("gguf" if engine == "llama_cpp" else "compressed_tensors")  # the packed one
    sizes = {name: model["size_bytes"] for name, model in models.items()}
    assert sizes["searched"] == sizes["uniform"] < sizes["dense"]
    exported = job.folder / "checkpoints" / entry["format"]
    assert sizes["searched"] == sum(file.stat().st_size for file in exported.glob("*.[gs][ga][uf]*"))
    assert {path.name for path in exported.parent.iterdir()} == set(job.export.formats)  # nothing is left behind
    run = read_run(job.folder)
    assert run.in_engine["searched"].perplexity == models["searched"]["perplexity"] > 1
    assert run.engine == f"{engine} 9.9"
    assert not run.defects
    assert f"In {engine} 9.9" in write_report(job.folder).read_text()
    assert "| searched |" in (exported / "README.md").read_text().partition("\n## In ")[2]
    assert tracker.numbers["dense/engine/perplexity"] == models["dense"]["perplexity"]


@pytest.mark.slow
def test_an_engine_that_fails_leaves_the_other_results(model_folders, tmp_path, caplog):
    pytest.importorskip("gguf")
    job = job_in(tmp_path, model_folders("llama"), "llama_cpp", **GGUF_FILE)
    stand_in("llama_cpp", tmp_path / "engine", code="raise RuntimeError('unknown architecture')")
    run_job(job)
    results = read_json(job.folder / "results.json")
    assert "unknown architecture" in results["engine"]["models"]["searched"]["error"]
    assert "llama.cpp could not measure the searched model" in caplog.text
    assert results["done"]
    assert read_run(job.folder).in_engine == {}
    assert "## In " not in (job.folder / "checkpoints" / "gguf" / "README.md").read_text()


@pytest.mark.slow
def test_the_engine_reads_whole_windows(model_folders, tmp_path):
    pytest.importorskip("gguf")
    job = job_in(tmp_path, model_folders("llama"), "llama_cpp", **GGUF_FILE)
    job = replace(job, eval=replace(job.eval, engine_tokens=33))
    run_job(job)
    assert read_json(job.folder / "results.json")["engine"]["tokens"] == 64


WRONG = {
    "no format": (
        {"export": Export()},
        r"eval.engine=llama_cpp runs an exported checkpoint, but none of export.formats=\[\] .* add one of gguf$",
    ),
    "another format": ({"export": Export(formats=["hf"])}, r"none of export.formats=\['hf'\]"),
    "no file": (
        {"eval": Eval(engine="llama_cpp", engine_python="/no/python")},
        r"eval.engine_python is /no/python, which cannot be run \(No such file",
    ),
    "no module": (
        {"eval": Eval(engine="llama_cpp")},
        "eval.engine=llama_cpp needs the Python module llama_cpp, which .* does not have: set eval.engine_python",
    ),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_what_is_missing_is_said_before_anything_runs(mistake, model_folders, tmp_path):
    changes, message = WRONG[mistake]
    job = job_in(tmp_path, model_folders("llama"), "llama_cpp", **{**GGUF_FILE, **changes})
    if mistake == "no module":
        pytest.importorskip("gguf")
        empty = stand_in("llama_cpp", tmp_path / "empty", code="")
        job = replace(job, eval=replace(job.eval, engine_python=empty))
    with pytest.raises(ValueError, match=message):
        job.check()
    replace(job, stages=("database",)).check()  # nothing is measured


def test_vllm_loads_compressed_tensors_only_if_they_are_for_it(model_folders, tmp_path):
    export = Export(formats=["compressed_tensors"])
    job = job_in(tmp_path, model_folders("llama"), "vllm", **{**FOR_VLLM, "export": export})
    with pytest.raises(ValueError, match=r"written for another engine: set export.engine=vllm"):
        job.check()
