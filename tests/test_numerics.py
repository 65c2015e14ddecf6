"""Odd numbers, from the calibration to the report: told where they are handled, refused where they cannot be."""

import html
import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from evopress.compressors.base import LayerGroup
from evopress.compressors.gguf import GGUF
from evopress.compressors.gptq import GPTQ
from evopress.compressors.sparsegpt import SparseGPT
from evopress.compressors.wanda import Wanda
from evopress.data.settings import Data
from evopress.database.build import build_database
from evopress.database.store import Database
from evopress.evaluation.evaluator import EvaluatorSettings
from evopress.evaluation.lm_eval_tasks import Eval
from evopress.models.source import ModelSource
from evopress.pipeline import Job, run
from evopress.runtime.tracking import Tracker
from evopress.search.baselines.additive import Additive, knapsack
from evopress.search.baselines.brute_force import BruteForce
from evopress.search.baselines.greedy import Greedy
from evopress.search.baselines.owl import Owl
from evopress.search.baselines.random import Random as RandomSearch
from evopress.search.baselines.scores import Scores
from evopress.search.baselines.uniform import Uniform
from evopress.search.evolution import Evolution, Stage
from evopress.search.guided import Guided
from evopress.search.refinement import Refinement
from evopress.space.budget import Budget
from evopress.space.settings import SpaceSettings
from evopress.space.units import Profile
from tests.spaces import BITS3, bit_space, drop_space, play, sparse_space
from tests.tiny_models import random_model, token_windows, tokenizer, wrap_model

pytestmark = pytest.mark.counts("numerics")

NAN = float("nan")
SMALL_DATA = dict(source="pydoc", window=32, search_tokens=64, validation_tokens=64, test_tokens=64)
COMPRESSORS = [
    GPTQ(bits=(2, 4), group_size=32),
    GPTQ(bits=(2, 4), group_size=32, act_order=True),
    SparseGPT(step=50, num_levels=1),
    Wanda(step=50, num_levels=1),
    GGUF(types=("Q8_0", "Q4_0")),
]


def job(folder: Path, change, **changes) -> Job:
    """A run on a tiny model after `change` was made to it."""
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
    """A tiny model after `change` was made to it."""
    model = random_model("llama")
    with torch.no_grad():
        change(model)
    return model


def layer_group(H: torch.Tensor, scale: float = 1.0) -> LayerGroup:
    W = torch.randn(8, len(H), generator=torch.Generator().manual_seed(1))
    return LayerGroup(("layer",), (scale * W,), H)


def hessian(tokens: int, cols: int = 64) -> torch.Tensor:
    X = torch.randn(tokens, cols, generator=torch.Generator().manual_seed(0))
    return 2 / tokens * X.t() @ X


def plain_errors(group: LayerGroup, compressor) -> list[float]:
    """tr(ΔW H ΔWᵀ) / tr(W H Wᵀ) in float64, of every level."""
    W, H = group.weights[0].double(), group.hessian.double()
    changes = [level.dense().double() - W for level in compressor.compress(group).levels[0]]
    return [float((change @ H * change).sum() / (W @ H * W).sum()) for change in changes]


@pytest.mark.parametrize("scale", [1e37, 1e-37])
@pytest.mark.parametrize("compressor", COMPRESSORS, ids=lambda compressor: type(compressor).__name__)
def test_the_size_of_a_hessian_changes_no_error(compressor, scale):
    usual = compressor.compress(layer_group(hessian(200)))
    extreme = compressor.compress(layer_group(scale * hessian(200)))
    assert extreme.errors[0] == pytest.approx(usual.errors[0], rel=1e-3)
    assert min(extreme.errors[0]) > 0 and extreme.notes == ()


@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("compressor", COMPRESSORS, ids=lambda compressor: type(compressor).__name__)
def test_fewer_tokens_than_inputs_give_finite_levels_and_the_errors_of_a_plain_computation(compressor, tokens):
    group = layer_group(hessian(tokens))
    found = compressor.compress(group)
    assert all(bool(level.dense().isfinite().all()) for level in found.levels[0])
    assert found.errors[0] == pytest.approx(plain_errors(group, compressor), rel=0.02, abs=1e-6)


@pytest.mark.parametrize("compressor", COMPRESSORS, ids=lambda compressor: type(compressor).__name__)
def test_constant_rows_are_finite_and_rows_of_zeros_stay_zeros(compressor):
    W = torch.full((3, 64), 0.7)
    W[1] = 0
    for level in compressor.compress(LayerGroup(("layer",), (W,), hessian(200))).levels[0]:
        assert bool(level.dense().isfinite().all()) and not level.dense()[1].any()


@pytest.mark.parametrize("compressor", COMPRESSORS[:3], ids=lambda compressor: type(compressor).__name__)
@pytest.mark.parametrize(
    ("coupling", "steps"),
    [(1.05, ["float64", "damping"]), (100.0, ["float64", "damping", "instead"])],
    ids=["more damping", "simple method"],
)
def test_every_step_of_the_ladder_is_told_and_its_levels_are_finite(compressor, coupling, steps):
    """No sum of outer products has such a Hessian; only rounding could."""
    H = torch.eye(64)
    H[0, 1] = H[1, 0] = coupling
    found = compressor.compress(layer_group(H))
    told = " ".join(found.notes)
    assert all(step in told for step in steps) and told.startswith("layer: ")
    assert ("instead" in told) == ("instead" in steps)
    assert all(bool(level.dense().isfinite().all()) for level in found.levels[0])


@pytest.mark.parametrize("act_order", [False, True])
def test_weights_beyond_a_float16_scale_are_noted_and_their_errors_told(act_order):
    compressor = GPTQ(bits=(4,), group_size=32, act_order=act_order)
    group = layer_group(hessian(200), scale=1e30)
    found = compressor.compress(group)
    assert "layer: weights are beyond the reach of float16 scales" in found.notes[0]
    assert found.errors[0] == pytest.approx([1.0])
    wide = GPTQ(bits=(4,), group_size=32, act_order=act_order, scale_dtype="float32").compress(group)
    assert wide.notes == () and 0 < wide.errors[0][0] < 0.1


def test_weights_beyond_their_type_are_refused_with_the_layer(tmp_path):
    lm = wrap_model(changed(lambda model: model.model.layers[1].mlp.up_proj.weight.mul_(1e8)), tokenizer(), "odd")
    compressor = Wanda(step=50, num_levels=1, value_dtype="float16")
    with pytest.raises(ValueError, match=r"model\.layers\.1\.mlp\.up_proj are not finite in float16.*value_dtype"):
        build_database(lm, compressor, token_windows(2, 8), Database.open(tmp_path, "x", {}), batch_tokens=16)


@pytest.mark.parametrize("bad", [NAN, float("inf")])
def test_dense_weights_that_are_not_finite_are_refused_by_name(bad, tmp_path):
    def damage(model):
        model.model.layers[1].mlp.up_proj.weight[3, 4] = bad

    with pytest.raises(ValueError, match=r"model\.layers\.1\.mlp\.up_proj\.weight of the dense model.*model\.path"):
        run(job(tmp_path, damage))
    assert not (tmp_path / "databases").exists()


def test_activations_that_overflow_are_refused_before_the_database(tmp_path):
    def damage(model):
        model.model.norm.weight.fill_(1e38)
        model.lm_head.weight.mul_(1e3)

    with pytest.raises(ValueError, match=r"the logits of odd are NaN or infinite.*model\.dtype"):
        run(job(tmp_path, damage))
    assert not (tmp_path / "databases").exists()


def notes_of(folder: Path) -> tuple[list[str], list[str]]:
    """What manifest and results say went other than planned."""
    (manifest,) = folder.glob("databases/*/*/manifest.json")
    blocks = json.loads(manifest.read_text())["blocks"]
    results = json.loads((folder / "run" / "results.json").read_text())
    return [note for block in sorted(blocks) for note in blocks[block]["notes"]], results["notes"]


def dead_columns(model) -> None:
    model.model.layers[1].mlp.up_proj.weight[[2, 5]] = 0  # what enters down_proj is then 0 in two places


def silent_block(model) -> None:
    model.model.layers[2].post_attention_layernorm.weight.zero_()  # nothing enters its MLP


def huge_weights(model) -> None:
    model.model.layers[0].self_attn.v_proj.weight.mul_(1e7)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (dead_columns, "model.layers.1.mlp.down_proj: 2 of 128 inputs were always zero"),
        (silent_block, "model.layers.2.mlp.gate_proj, model.layers.2.mlp.up_proj: rounded to nearest instead"),
        (huge_weights, "model.layers.0.self_attn.v_proj: weights are beyond the reach of float16 scales"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_went_other_than_planned_stands_in_manifest_log_and_results(change, told, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    run(job(tmp_path, change))
    in_manifest, in_results = notes_of(tmp_path)
    assert any(told in note for note in in_manifest)
    assert in_results == in_manifest
    assert told in html.unescape((tmp_path / "run" / "report.html").read_text())
    assert any(told in record.message and record.levelname == "WARNING" for record in caplog.records)


@pytest.mark.parametrize("cols", [48, 80])
def test_inputs_that_the_group_does_not_divide_take_a_smaller_one(cols):
    solved = GPTQ(bits=(4,), group_size=64).compress(layer_group(hessian(200, cols)))
    assert solved.levels[0][0].group_size == 16
    assert 0 < solved.errors[0][0] < 0.05


STAGES = [Stage(survivors=2, tokens=8), Stage(survivors=1, tokens=16)]
BITS = bit_space([8] * 6)
DROPS, DROP = drop_space(4), Budget(metric="drop", target=0.25)
SPARSE, HALF = sparse_space(4), Budget(metric="sparsity", target=0.5)


def owl_table(question) -> list[list[float]]:
    return [[0.1 * (block + 1), 0.3 - 0.05 * block] for block in range(4)]


def effects(question) -> list[list[float]]:
    return [[NAN, NAN] for unit in BITS.units for _ in unit.levels]


GUIDED = Guided(rounds=1, table_tokens=8, dampings=[1.0], line_tokens=8, generations=2, offspring=4, stages=STAGES)
REFINEMENT = Refinement(table_tokens=8, share=1, tokens=8, line_tokens=8)
SEARCHES = {
    "evolution": (
        Evolution(generations=3, offspring=4, stages=STAGES, initial_candidates=4, initial_tokens=8),
        BITS,
        BITS3,
        None,
    ),
    "guided": (GUIDED, BITS, BITS3, effects),
    "refinements": (
        replace(GUIDED, rounds=0, generations=0, refinements=2, refinement=REFINEMENT),
        BITS,
        BITS3,
        effects,
    ),
    "random": (RandomSearch(candidates=8, tokens=8), BITS, BITS3, None),
    "additive": (Additive(errors="measured", tokens=8), BITS, BITS3, None),
    "greedy": (Greedy(tokens=8), BITS, BITS3, None),
    "owl": (Owl(multiples=[3.0, 5.0], spreads=[0.05, 0.2], tokens=8), SPARSE, HALF, owl_table),
    "perplexity": (Scores(score="perplexity", tokens=8), DROPS, DROP, None),
    "brute_force": (BruteForce(tokens=8), DROPS, DROP, None),
}


ELITIST = ("evolution", "guided", "refinements")


def played(name: str, fitness) -> tuple[Profile, list]:
    method, space, budget, table = SEARCHES[name]
    return play(method, space, budget, fitness, table=table or (lambda question: []))


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_without_any_number_stops_and_says_why(name):
    with pytest.raises(ValueError, match=r"candidates is NaN or infinite.*model\.dtype"):
        played(name, lambda profile: NAN)


@pytest.mark.parametrize("name", [name for name in SEARCHES if name not in ("additive", "greedy", "perplexity")])
@pytest.mark.parametrize("first", [0, 1])
def test_a_nan_is_never_chosen_while_there_is_a_number(name, first):
    """NaN for every other profile that is asked about; the parent of elitist searches has a number."""
    space = SEARCHES[name][1]
    told: dict[Profile, float] = {}

    def fitness(profile: Profile) -> float:
        is_parent = profile == space.uniform(1) and name in ELITIST
        is_number = is_parent or len(told) % 2 == first
        return told.setdefault(profile, float(sum(profile[:3])) if is_number else NAN)

    best, _ = played(name, fitness)
    numbers = [value for value in told.values() if value == value]
    assert len(numbers) < len(told)
    assert told[best] == told[best] and (name in ELITIST or told[best] == min(numbers))


def poisoned(profile: Profile) -> float:
    """NaN as soon as the first unit is at its last level; else cheaper by the first unit."""
    return NAN if profile[0] == 2 else 10.0 - 3 * profile[0] + sum(profile)


@pytest.mark.parametrize("name", ["additive", "greedy", "evolution", "random"])
def test_a_level_that_gives_nan_is_avoided_where_the_budget_leaves_another(name):
    best, _ = played(name, poisoned)
    assert best[0] != 2


def test_a_drop_that_gives_nan_is_avoided():
    best, _ = played("perplexity", lambda profile: NAN if profile[0] else float(sum(profile[4:])))
    assert best[0] == best[1] == 0 and sum(best) == 2


def test_a_budget_that_leaves_nothing_else_takes_what_is_not_finite():
    space = bit_space([8] * 2)
    errors = [[0.0, NAN, float("inf")], [0.0, 1.0, 2.0]]
    assert knapsack(space, Budget(metric="bits", target=3).caps(space), errors) == (0, 2)
    assert knapsack(space, Budget(metric="bits", target=2).caps(space), errors) == (2, 2)
