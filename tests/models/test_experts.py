"""Experts are layers like all others: calibrated on the tokens routed to them, compressed, searched and exported."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from evopress.compressors.base import LayerGroup
from evopress.compressors.gptq import GPTQ
from evopress.compressors.hessian import towards_identity
from evopress.compressors.rtn import RTN
from evopress.database.build import BatchLimits, build_database
from evopress.database.store import Database
from evopress.evaluation.compressible_model import CompressibleModel
from evopress.evaluation.switch_effects import switch_effects
from evopress.export import Export
from evopress.models.experts import Experts, ExpertsOfScaledTokens, _gate_of, clamped_gated
from evopress.models.language_model import LanguageModel
from evopress.models.loading import wrap_model
from evopress.pipeline import run_job
from evopress.search.guided import Guided
from evopress.search.selection import Stage
from evopress.space.apply import applied
from evopress.space.build import layer_space
from evopress.space.settings import SpaceSettings
from tests import plain
from tests.evaluation.test_evaluator import CLOSE, Case, profiles_of
from tests.evaluation.test_switch_effects import Noisy, Random, some_profile
from tests.marks import slow_except
from tests.planning.test_estimate import job
from tests.tiny_models import (
    ALL_FAMILIES,
    MIXED,
    NUM_BLOCKS,
    NUM_EXPERTS,
    WITH_EXPERTS,
    config,
    random_model,
    save_tiny,
    tiny,
    token_windows,
    tokenizer,
)

TOKENS = token_windows(10, 20)
CASES = (*WITH_EXPERTS, *MIXED, "gpt_oss")
SEARCH = Guided(
    rounds=1,
    table_tokens=64,
    dampings=[1],
    line_tokens=32,
    generations=1,
    offspring=2,
    stages=[Stage(survivors=1, tokens=32)],
)


def starved(family: str) -> LanguageModel:
    """No token is routed to the last expert of any block: of r·x, −r·x, s·x, −s·x and 0, two are above 0."""
    model = random_model(family)
    with torch.no_grad():
        for block in model.model.layers:
            rows = block.mlp.gate.weight
            rows.copy_(torch.stack([rows[0], -rows[0], rows[1], -rows[1], 0 * rows[0]]))
    return wrap_model(model, tokenizer(), f"starved-{family}")


@pytest.mark.parametrize("family", [name for name in ALL_FAMILIES if hasattr(config(name), "num_experts_per_tok")])
def test_unpacked_experts_compute_what_transformers_computes(family):
    tokens = token_windows(2, 20)
    expected = plain.logits(random_model(family), tokens)
    lm = tiny(family)
    experts = [module for module in lm.model.modules() if isinstance(module, Experts | ExpertsOfScaledTokens)]
    assert experts and all(len(module) == NUM_EXPERTS for module in experts)
    assert not any("gate_up_proj" in name for name, _ in lm.model.named_parameters())
    torch.testing.assert_close(plain.logits(lm.model, tokens), expected, rtol=1e-4, atol=1e-5)


def test_experts_with_another_gate_are_refused():
    """They would be computed by the wrong function."""
    model = random_model("qwen3_moe")
    experts = type(model.model.layers[0].mlp.experts)
    plain_gate = experts._apply_gate

    def clamped(module: torch.nn.Module, gate_up: torch.Tensor) -> torch.Tensor:
        return plain_gate(module, gate_up.clamp(max=7))

    with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError, match=r"experts.*one matrix per expert"):
        patch.setattr(experts, "_apply_gate", clamped)
        wrap_model(model, tokenizer(), "clamped")


def test_large_inputs_of_experts_are_clamped_as_in_transformers():
    experts = random_model("gpt_oss").model.layers[0].mlp.experts
    gate, up = 20 * torch.randn(2, 100, generator=torch.Generator().manual_seed(0))
    expected = experts._apply_gate(torch.stack([gate, up], -1).flatten())
    assert experts.limit < 20
    combined = clamped_gated(gate, up, alpha=experts.alpha, limit=experts.limit)
    torch.testing.assert_close(combined, expected)
    experts.limit += 1
    torch.testing.assert_close(_gate_of(experts)(gate, up), experts._apply_gate(torch.stack([gate, up], -1).flatten()))


def test_experts_in_another_layout_are_refused():
    """The first two have shapes of the known layout."""
    for attribute, value in (("is_transposed", True), ("is_concatenated", False), ("down_proj", None)):
        model = random_model("qwen3_moe")
        for block in model.model.layers:
            transposed = torch.nn.Parameter(block.mlp.experts.down_proj.transpose(1, 2).contiguous())
            setattr(block.mlp.experts, attribute, transposed if value is None else value)
        with pytest.raises(ValueError, match=r"mlp\.experts\.gate_up_proj.*one matrix per expert"):
            wrap_model(model, tokenizer(), attribute)


@pytest.mark.parametrize("family", WITH_EXPERTS)
def test_every_matrix_of_an_expert_is_a_layer_and_the_router_is_not(family):
    lm = tiny(family)
    locals_ = lm.layers(0)
    assert len(locals_) == 4 + 3 * NUM_EXPERTS
    assert not any("gate.weight" in f"{local}.weight" or local == "mlp.gate" for local in locals_)
    assert len(lm.subblock_outputs(0, "mlp")) == NUM_EXPERTS and len(lm.subblock_outputs(0, "attention")) == 1
    sizes = {tie: len(layer_space(lm, RTN(bits=(2, 4), group_size=32), SpaceSettings(tie=tie))) for tie in TIES}
    assert sizes == {tie: NUM_BLOCKS * number for tie, number in TIES.items()}


TIES = {"none": 4 + 3 * NUM_EXPERTS, "expert": 4 + NUM_EXPERTS, "engine": 3}


@pytest.mark.parametrize("tie", ["expert", "engine"])
def test_a_tied_unit_has_all_its_layers_and_one_kind_in_all_blocks(tie):
    lm = tiny("qwen3_moe")
    space = layer_space(lm, RTN(bits=(2, 4), group_size=32), SpaceSettings(tie=tie))
    assert sorted(layer for unit in space.units for layer in unit.layers) == sorted(
        lm.layer_name(block, local) for block in range(NUM_BLOCKS) for local in lm.layers(block)
    )
    last = space.units[-1]
    experts = f"{lm.block_names[-1]}.mlp.experts"
    if tie == "expert":
        assert (last.name, last.kind, len(last.layers)) == (f"{experts}.{NUM_EXPERTS - 1}", "mlp.experts.*", 3)
    else:
        assert (last.name, last.kind, len(last.layers)) == (experts, "mlp.experts", 3 * NUM_EXPERTS)


@pytest.mark.slow
@pytest.mark.parametrize("family", CASES)
def test_the_evaluator_gives_a_model_with_experts_the_kl_of_the_whole_model(family, tmp_path):
    case = Case(tiny(family), RTN(bits=(2, 3, 4), group_size=32), tmp_path)
    profiles, tokens = profiles_of(case.space, 4), token_windows(2, 20)
    kls, _ = plain.kl_and_perplexity(case.lm, case.space, case.levels, profiles, tokens)
    assert max(kls) > 0.01
    assert case.evaluator().evaluate(profiles, tokens) == pytest.approx(kls, **CLOSE)


def inputs_of(lm: LanguageModel, layer: str) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    handle = lm.model.get_submodule(layer).register_forward_pre_hook(lambda module, args: seen.append(args[0].double()))
    with torch.no_grad():
        for window in TOKENS.split(1):
            lm.model(input_ids=window, use_cache=False)
    handle.remove()
    return torch.cat(seen or [torch.zeros(0, lm.model.get_submodule(layer).in_features, dtype=torch.float64)])


@pytest.mark.slow
@pytest.mark.parametrize("make", [tiny, starved], ids=["fed", "starved"])
@pytest.mark.parametrize("family", WITH_EXPERTS)
def test_hessians_come_from_the_routed_tokens_and_the_identity_where_these_are_few(make, family, tmp_path):
    lm, groups = make(family), []

    class Watched(GPTQ):
        def compress(self, group: LayerGroup):
            groups.append(group)
            return super().compress(group)

    database = Database.open(tmp_path, "test", {"model": lm.name})
    build_database(
        lm,
        Watched(bits=(4, 2), group_size=32, propagate_bits=4, weigh_tokens=False),
        TOKENS,
        database,
        limits=BatchLimits(batch_tokens=60),
    )
    few = set()
    for group in [group for group in groups if ".layers.0.mlp.experts." in group.names[0]]:
        X, cols = inputs_of(lm, group.names[0]), group.weights[0].shape[1]
        H = 2 / max(1, len(X)) * X.t() @ X
        if len(X) < cols:
            few.add(group.names[0])
            H = towards_identity(H, len(X) / cols)
        torch.testing.assert_close(group.hessian.double(), H, rtol=1e-4, atol=1e-5)
    noted = {name for name in few if any(f"routed to {name}," in note for note in database.notes)}
    assert noted == few and (make is tiny or few)


def test_an_expert_without_tokens_is_rounded_to_nearest_and_reported(tmp_path):
    lm = starved("qwen3_moe")
    compressor = GPTQ(bits=(4, 2), group_size=32, propagate_bits=4, refit_scales=False)
    database = Database.open(tmp_path, "test", {"model": lm.name})
    build_database(lm, compressor, TOKENS, database, limits=BatchLimits(batch_tokens=60))
    for block in range(NUM_BLOCKS):
        for part in ("gate_proj", "down_proj"):
            layer = lm.layer_name(block, f"mlp.experts.{NUM_EXPERTS - 1}.{part}")
            assert any(f"0 tokens were routed to {layer}" in note for note in database.notes)
            weight = lm.model.get_submodule(layer).weight
            rounded = RTN(bits=(4, 2), group_size=32).compress(LayerGroup((layer,), (weight,)))
            assert torch.equal(database.read(block, layer, 1).dense(), rounded.levels[0][1].dense())


@pytest.mark.parametrize("tie", ["none", "engine"])
@pytest.mark.parametrize("family", slow_except(CASES, (*WITH_EXPERTS, "qwen3_next", "llama4_text")))
def test_the_first_order_of_a_switch_is_the_slope_of_the_divergence(family, tie):
    """By the central difference of the whole model between a small step towards the level and one away from it."""
    lm, step = tiny(family), 1e-2
    space = layer_space(lm, RTN(bits=(2, 4), group_size=32), SpaceSettings(tie=tie))
    weights, profile, tokens = Noisy(lm), some_profile(space), token_windows(2, 12)
    effects = switch_effects(CompressibleModel(lm, space, weights), profile, parts=[tokens], draws=1, rng=Random(0))
    dense = plain.logits(lm.model, tokens)

    def divergence(index: int, factor: float) -> float:
        unit, level = space.units[index], profile[index]
        pairs = [[weights.get(unit.blocks[0], layer, option) for option in (level, 1 - level)] for layer in unit.layers]
        with applied(lm, space, weights, profile):
            for layer, (here, there) in zip(unit.layers, pairs, strict=True):
                lm.model.get_submodule(layer).weight.data = here + factor * (there - here)
            return float(plain.kl(dense, plain.logits(lm.model, tokens)).mean())

    for index in (len(space) - 1, len(space) // 2):
        slope = (divergence(index, step) - divergence(index, -step)) / (2 * step)
        switch = sum(len(unit.levels) for unit in space.units[:index]) + 1 - profile[index]
        assert float(effects.first[switch]) == pytest.approx(slope, rel=0.05, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", WITH_EXPERTS)
def test_the_whole_job_runs_and_the_export_is_loaded_by_transformers(family, tmp_path):
    save_tiny(family, tmp_path / "model")
    settings = job(tmp_path, tmp_path / "model", search=SEARCH, export=Export(formats=["hf"]))
    space = SpaceSettings(tie="expert" if family == "mixtral" else "none")
    profile = run_job(replace(settings, space=space))
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["exports"]["hf"] and results["searched"]["kl"]
    assert len(profile) == NUM_BLOCKS * TIES[space.tie]
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "checkpoints" / "hf")
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    routers = [name for name, _ in dense.named_parameters() if name.endswith("mlp.gate.weight")]
    assert len(routers) == NUM_BLOCKS
    for name in routers:
        assert torch.equal(exported.get_parameter(name), dense.get_parameter(name).to(exported.dtype))
