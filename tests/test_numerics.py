"""NaN, infinite and huge numbers, from the dense model to the report: each is either handled and noted, or refused."""

import html
import json
import logging
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from evopress.compressors.gptq import GPTQ
from evopress.compressors.wanda import Wanda
from evopress.data.settings import Data
from evopress.database.build import BatchLimits, build_database
from evopress.database.store import Database
from evopress.evaluation.eval_settings import Eval
from evopress.evaluation.evaluator import EvaluatorSettings
from evopress.job import Job
from evopress.models.source import ModelSource
from evopress.pipeline import run_job
from evopress.runtime.tracking import Tracker
from evopress.search.baselines.uniform import Uniform
from evopress.space.budget import Budget
from evopress.space.settings import SpaceSettings
from tests.tiny_models import random_model, token_windows, tokenizer, wrap_model

pytestmark = pytest.mark.counts("odd numbers")

SMALL_DATA = dict(source="pydoc", window=32, search_tokens=64, validation_tokens=64, test_tokens=64)


def job(folder: Path, change, **changes) -> Job:
    """A run on a tiny model with weights changed in place by `change`."""
    changed(change).save_pretrained(folder / "model")
    tokenizer().save_pretrained(folder / "model")
    settings = dict(
        model=ModelSource(name="odd", path=str(folder / "model"), dtype="float32", device="cpu", max_perplexity=1e6),
        data=Data(calibration_tokens=256, **SMALL_DATA),
        compress=GPTQ(bits=[2, 3, 4], group_size=32),
        space=SpaceSettings(),
        budget=Budget(metric="bits", target=3),
        search=Uniform(),
        evaluator=EvaluatorSettings(),
        eval=Eval(),
        tracker=Tracker(),
        folder=folder / "run",
        outputs=folder,
    )
    return Job(**{**settings, **changes})


def changed(change) -> PreTrainedModel:
    """A tiny model with weights changed in place by `change`."""
    model = random_model("llama")
    with torch.no_grad():
        change(model)
    return model


def test_compressed_weights_that_overflow_their_type_are_refused_with_the_name_of_the_layer(tmp_path):
    lm = wrap_model(changed(lambda model: model.model.layers[1].mlp.up_proj.weight.mul_(1e8)), tokenizer(), "odd")
    compressor = Wanda(step=50, num_levels=1, value_dtype="float16")
    with pytest.raises(ValueError, match=r"model\.layers\.1\.mlp\.up_proj are not finite in float16.*value_dtype"):
        build_database(
            lm, compressor, token_windows(2, 8), Database.open(tmp_path, "x", {}), limits=BatchLimits(batch_tokens=16)
        )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_dense_weights_that_are_not_finite_are_refused_by_name(bad, tmp_path):
    def damage(model):
        model.model.layers[1].mlp.up_proj.weight[3, 4] = bad

    with pytest.raises(ValueError, match=r"model\.layers\.1\.mlp\.up_proj\.weight of the dense model.*model\.path"):
        run_job(job(tmp_path, damage))
    assert not (tmp_path / "databases").exists()


def test_activations_that_overflow_are_refused_before_the_database_is_built(tmp_path):
    def damage(model):
        model.model.norm.weight.fill_(1e38)
        model.lm_head.weight.mul_(1e3)

    with pytest.raises(ValueError, match=r"the logits of odd are NaN or infinite.*model\.dtype"):
        run_job(job(tmp_path, damage))
    assert not (tmp_path / "databases").exists()


def notes_of(folder: Path) -> tuple[list[str], list[str]]:
    """The notes in the manifest of the database, and those in the results."""
    (manifest,) = folder.glob("databases/*/*/manifest.json")
    blocks = json.loads(manifest.read_text())["blocks"]
    results = json.loads((folder / "run" / "results.json").read_text())
    return [note for block in sorted(blocks) for note in blocks[block]["notes"]], results["notes"]


def dead_columns(model) -> None:
    model.model.layers[1].mlp.up_proj.weight[[2, 5]] = 0  # two inputs of down_proj are then always 0


def silent_block(model) -> None:
    model.model.layers[2].post_attention_layernorm.weight.zero_()  # all inputs of its MLP are then 0


def huge_weights(model) -> None:
    model.model.layers[0].self_attn.v_proj.weight.mul_(1e7)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "note"),
    [
        (dead_columns, "model.layers.1.mlp.down_proj: 2 of 128 inputs were always zero"),
        (silent_block, "model.layers.2.mlp.gate_proj, model.layers.2.mlp.up_proj: rounded to nearest instead"),
        (huge_weights, "model.layers.0.self_attn.v_proj: weights exceed the range of float16 scales"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_notes_of_compressors_are_in_manifest_log_results_and_report(change, note, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    run_job(job(tmp_path, change))
    in_manifest, in_results = notes_of(tmp_path)
    assert any(note in line for line in in_manifest)
    assert in_results == in_manifest
    assert note in html.unescape((tmp_path / "run" / "report.html").read_text())
    assert any(note in record.message and record.levelname == "WARNING" for record in caplog.records)
