"""Every experiment of the paper runs, with a tiny random model and a stand-in for the hub.

What is loaded and checked before the database has its true size, so that an experiment cannot ask for more text than
there is. The passes through the model after that would take hours at 8 million tokens, so the database, the search
and the evaluation get little text.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from transformers import AutoConfig, AutoModelForCausalLM

from evopress.config import CONFIG_FOLDER, build_job
from evopress.data.splits import SPLITS
from evopress.evaluation.data_sets import load_test_sets
from evopress.job import Job
from evopress.models.loading import load_model
from evopress.models.source import ModelSource
from evopress.pipeline import run_job
from evopress.planning.planned_run import plan_run
from evopress.preparation import load_inputs
from evopress.start_checks import check_start
from tests import hub
from tests.jobs import SEARCH

EXPERIMENTS = sorted(path.stem for path in CONFIG_FOLDER.glob("experiment/*.yaml"))


def save_model(folder: Path, num_blocks: int) -> ModelSource:
    """A random model with the context of the large ones, and a tokenizer for the words of the stand-in."""
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": num_blocks}
    config = AutoConfig.for_model("llama", **shape, **hub.MODEL_SHAPE, max_position_embeddings=8192)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    hub.word_tokenizer().save_pretrained(folder)
    return ModelSource(name="stand-in", path=str(folder), dtype="float32", device="cpu", max_perplexity=1e9)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> ModelSource:
    return save_model(tmp_path_factory.mktemp("model"), num_blocks=4)  # so that an eighth and a quarter can be dropped


@pytest.fixture(scope="module")
def shallow(tmp_path_factory) -> ModelSource:
    """Reads a window of 8192 tokens in a second."""
    return save_model(tmp_path_factory.mktemp("shallow"), num_blocks=1)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> Path:
    """One folder for all experiments, which read the same text."""
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    monkeypatch.setattr("datasets.load_dataset", hub.load_dataset)
    monkeypatch.setattr("evopress.evaluate_stage.write_report", lambda folder: folder / "results.json")  # takes seconds
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # takes a second for every task


def job_of(experiment: str, folder: Path, outputs: Path, model: ModelSource) -> Job:
    """The experiment as it is, but for the model."""
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        job = build_job(compose("config", [f"experiment={experiment}"]), folder)
    return replace(job, model=model, outputs=outputs)


def test_the_fast_tokenizer_gives_the_tokens_of_the_real_one():
    text = f"\n\n{hub.words('sample', 3000)}\n\nw1 "
    assert (
        hub.SplittingTokenizer()(text)["input_ids"] == hub.word_tokenizer()(text, add_special_tokens=False)["input_ids"]
    )


@pytest.mark.slow
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_finds_all_the_text_that_it_asks_for(experiment, outputs, shallow, tmp_path, monkeypatch):
    fast = replace(load_model(shallow, outputs), tokenizer=hub.SplittingTokenizer())
    monkeypatch.setattr("evopress.preparation.load_model", lambda source, cache: fast)
    job = job_of(experiment, tmp_path / "run", outputs, shallow)
    job.check()
    _, splits = load_inputs(job)
    window = job.data.window
    asked = {split: getattr(job.data, f"{split}_tokens") for split in SPLITS}
    assert {split: getattr(splits, split).numel() for split in SPLITS} == asked
    test_sets = load_test_sets(
        splits, job.data, test_sets=job.test_sets, tokenizer=fast.tokenizer, cache=outputs / "cache"
    )
    sizes = {name: tokens.numel() for name, tokens in test_sets.items()}
    words = {"wikitext2": 84 * (hub.WIKITEXT["test"] * 2 // 3), "c4": 1100 * hub.C4_WORDS}
    assert sizes == {"fineweb_edu": 2**19} | {name: number // window * window for name, number in words.items()}


@pytest.mark.slow
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_runs_to_its_end_with_little_text(experiment, model, tmp_path):
    job = job_of(experiment, tmp_path / "run", tmp_path, model)
    little = {f"{split}_tokens": 256 for split in SPLITS}
    job = replace(job, data=replace(job.data, window=64, **little), eval=replace(job.eval, test_tokens=256, limit=2))
    run = plan_run(job)
    check_start(job, run.lm, run.space)  # with the search of the experiment itself
    run_job(replace(job, search=SEARCH))
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["done"]
    assert set(results["searched"]["kl"]) == {"fineweb_edu", "wikitext2", "c4"}
    assert set(results["searched"]["tasks"]) == set(job.eval.tasks)
    assert "1100 rows" in results["test_sets"]["c4"]["text"]
