"""A model run part by part, or with parts replaced, is the whole model; other models are refused with a reason."""

from dataclasses import replace

import pytest
import torch
from torch.nn import Linear

from evopress.compressors.drop import Drop
from evopress.compressors.rtn import RTN
from evopress.database.cache import DecodedLevels
from evopress.models.families import FAMILIES as KNOWN
from evopress.models.families import Family
from evopress.models.family_match import detect_family, missing_parts
from evopress.models.language_model import LanguageModel
from evopress.models.loading import wrap_model
from evopress.models.verification import check_blocks_make_up_model, check_layers_are_not_shared
from evopress.space.apply import applied
from evopress.space.build import drop_space, layer_space
from evopress.space.settings import SpaceSettings
from tests import plain
from tests.tiny_models import FAMILIES, NUM_BLOCKS, SLIDING_WINDOW, random_model, tiny, token_windows, tokenizer

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
TOKENS = token_windows(3, 2 * SLIDING_WINDOW + 5)


def in_parts(lm: LanguageModel, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        hidden, kwargs = lm.embed(tokens)
        for block in range(lm.num_blocks):
            hidden = lm.run_block(block, hidden, kwargs[block])
        return lm.logits(lm.final_norm(hidden))


def state(lm: LanguageModel) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}


def assert_same_state(lm: LanguageModel, before: dict[str, torch.Tensor]) -> None:
    after = lm.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_parts_make_up_the_whole(family):
    lm = tiny(family)
    torch.testing.assert_close(in_parts(lm, TOKENS), plain.logits(lm.model, TOKENS), **CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_whole_model_is_untouched_by_running_its_parts(family):
    lm = tiny(family)
    before, whole = state(lm), plain.logits(lm.model, TOKENS)
    in_parts(lm, TOKENS)
    assert_same_state(lm, before)
    assert torch.equal(plain.logits(lm.model, TOKENS), whole)


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text"])
def test_sliding_and_full_blocks_are_called_differently_and_it_matters(family):
    lm = tiny(family)
    with torch.no_grad():
        hidden, kwargs = lm.embed(TOKENS)
        right = lm.run_block(0, hidden, kwargs[0])
        wrong = lm.run_block(0, hidden, kwargs[1])
    inside = slice(0, SLIDING_WINDOW)
    assert not torch.allclose(right, wrong, atol=1e-2)
    if family == "gemma2":  # Gemma 3 has other positions too
        torch.testing.assert_close(right[:, inside], wrong[:, inside])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_window_gets_the_same_whatever_batch_it_is_in(family):
    lm = tiny(family)
    alone = torch.cat([in_parts(lm, window) for window in TOKENS.split(1)])
    torch.testing.assert_close(in_parts(lm, TOKENS), alone, **CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_layers_are_all_linear_layers_of_the_blocks_in_groups_that_read_the_same_input(family):
    lm = tiny(family)
    locals_ = [local for group in lm.layer_groups for local in group]
    for block in lm.blocks:
        assert sorted(locals_) == sorted(name for name, module in block.named_modules() if isinstance(module, Linear))
    inputs: dict[str, torch.Tensor] = {}
    order: list[str] = []

    def note(local):
        return lambda module, args: (inputs.update({local: args[0].clone()}), order.append(local))[0]

    handles = [lm.linear(1, local).register_forward_pre_hook(note(local)) for local in locals_]
    plain.logits(lm.model, TOKENS[:1])
    for handle in handles:
        handle.remove()
    for group in lm.layer_groups:
        assert all(torch.equal(inputs[group[0]], inputs[local]) for local in group)
    assert len({float(inputs[group[0]].sum()) for group in lm.layer_groups}) == len(lm.layer_groups)
    firsts = [group[0] for group in lm.layer_groups]
    assert [local for local in order if local in firsts] == firsts


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_and_mlp_share_out_the_layers(family):
    lm = tiny(family)
    attention, mlp = lm.subblock_layers("attention"), lm.subblock_layers("mlp")
    assert sorted(attention + mlp) == sorted(local for group in lm.layer_groups for local in group)
    assert all("attn" in local for local in attention) and not any("attn" in local for local in mlp)


@pytest.mark.parametrize("dropped", [{"attention"}, {"mlp"}, {"attention", "mlp"}], ids=" ".join)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_dropped_part_adds_nothing(family, dropped):
    lm = tiny(family)
    space = drop_space(lm, Drop())
    profile = tuple(int(unit.blocks == (1,) and unit.kind in dropped) for unit in space.units)
    model = plain.assembled(lm, space, {}, profile)
    with torch.no_grad():
        hidden, kwargs = lm.embed(TOKENS)
        found = lm.run_block(1, hidden, kwargs[1], dropped=frozenset(dropped))
    states: list[torch.Tensor] = []
    block = model.get_submodule(lm.block_names[1])
    block.register_forward_hook(lambda module, args, output: states.append(output))
    block.register_forward_pre_hook(lambda module, args: (hidden, *args[1:]))
    with torch.no_grad():
        model(input_ids=TOKENS)
    expected = states[0][0] if isinstance(states[0], tuple) else states[0]
    torch.testing.assert_close(found, expected, **CLOSE)
    assert torch.equal(found, hidden) == (len(dropped) == 2)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_replaced_model_is_the_assembled_one_and_afterwards_itself(family, tmp_path):
    lm = tiny(family)
    compressor = RTN(bits=(4, 2), group_size=32)
    space, levels = layer_space(lm, compressor, SpaceSettings()), plain.layer_levels(lm, compressor)
    cpu = torch.device("cpu")
    weights = DecodedLevels(plain.filled(lm, levels, tmp_path), limit_bytes=10**9, dtype=torch.float32, device=cpu)
    profile = tuple(index % 2 for index in range(len(space)))
    before, modules = state(lm), list(lm.model.named_modules())
    pointers = [parameter.data_ptr() for parameter in lm.model.parameters()]
    with applied(lm, space, weights, profile) as model:
        found = plain.logits(model, TOKENS)
    torch.testing.assert_close(found, plain.logits(plain.assembled(lm, space, levels, profile), TOKENS), **CLOSE)
    assert_same_state(lm, before)
    assert list(lm.model.named_modules()) == modules
    assert [parameter.data_ptr() for parameter in lm.model.parameters()] == pointers
    assert not any(parameter.requires_grad for parameter in lm.model.parameters())


@pytest.mark.parametrize("granularity", ["subblock", "block"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_with_drops_is_the_one_with_zeros_and_afterwards_itself(family, granularity):
    lm = tiny(family)
    space = drop_space(lm, Drop(granularity=granularity))
    profile = tuple(int(index % 3 != 1) for index in range(len(space)))
    before, modules, whole = state(lm), list(lm.model.named_modules()), plain.logits(lm.model, TOKENS)
    with applied(lm, space, None, profile) as model:
        found = plain.logits(model, TOKENS)
        generated = model.generate(
            input_ids=TOKENS[:, :4], attention_mask=torch.ones(3, 4), max_new_tokens=3, do_sample=False
        )
    torch.testing.assert_close(found, plain.logits(plain.assembled(lm, space, {}, profile), TOKENS), **CLOSE)
    assert generated.shape[0] == 3
    assert_same_state(lm, before)
    assert list(lm.model.named_modules()) == modules
    assert torch.equal(plain.logits(lm.model, TOKENS), whole)


def test_no_profile_is_the_dense_model():
    lm = tiny("llama")
    whole = plain.logits(lm.model, TOKENS)
    with applied(lm, drop_space(lm, Drop()), None, None) as model:
        assert torch.equal(plain.logits(model, TOKENS), whole)


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_an_error_while_parts_are_replaced_leaves_the_model_as_it_was(family):
    lm = tiny(family)
    before, modules = state(lm), list(lm.model.named_modules())
    name = lm.layer_name(0, lm.layer_groups[0][0])
    dropped = {0: frozenset({"attention", "mlp"}), 2: frozenset({"mlp"})}
    with pytest.raises(RuntimeError, match="in between"), lm.replaced({name: torch.zeros(64, 64)}, dropped):
        raise RuntimeError("in between")
    with pytest.raises(AttributeError), lm.replaced({name: torch.zeros(64, 64), "no.such.layer": TOKENS}, dropped):
        pass
    with pytest.raises(RuntimeError), torch.no_grad():
        lm.run_block(0, torch.zeros(1, 3, 65), {}, dropped=frozenset({"mlp"}))
    assert_same_state(lm, before)
    assert list(lm.model.named_modules()) == modules


@pytest.mark.parametrize("family", FAMILIES)
def test_identity_is_that_of_configuration_and_weights(family):
    first, again = (wrap_model(random_model(family), tokenizer(), name) for name in ("one", "other"))
    assert first.identity == again.identity
    changed = random_model(family)
    with torch.no_grad():
        changed.get_submodule(first.layer_name(2, first.layer_groups[-1][-1])).weight[3, 5] += 1e-3
    assert wrap_model(changed, tokenizer(), "one").identity != first.identity
    configured = random_model(family)
    configured.config.max_position_embeddings += 1
    assert wrap_model(configured, tokenizer(), "one").identity != first.identity


def test_a_layer_that_shares_its_weight_is_refused():
    model = random_model("llama")
    model.model.layers[2].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    with pytest.raises(ValueError, match=r"layers\.2\.mlp\.up_proj.* the same tensor as .*layers\.0\.mlp\.up_proj"):
        wrap_model(model, tokenizer(), "shared")


def test_tied_embeddings_are_no_shared_layer():
    lm = tiny("gemma3_text")
    assert lm.model.get_input_embeddings().weight is lm.model.get_submodule("lm_head").weight
    check_layers_are_not_shared(lm)


@pytest.mark.parametrize(
    "wrong",
    [{"norm": "model.layers.0.input_layernorm"}, {"head": "model.layers.0.mlp.gate_proj"}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_family_with_parts_in_the_wrong_place_is_refused(wrong):
    lm = tiny("llama")
    broken = replace(lm, family=replace(lm.family, **wrong))
    with pytest.raises(ValueError, match=r"blocks run one by one.*model\.family"):
        check_blocks_make_up_model(broken)


def test_blocks_that_are_not_all_of_the_model_are_refused():
    """Half of the decoder in another list, which the family does not name."""
    lm = tiny("llama")
    short = replace(lm)
    short.__dict__["blocks"] = lm.blocks[:2]
    with pytest.raises(ValueError, match=r"blocks run one by one.*model\.family"):
        check_blocks_make_up_model(short)


def renamed_llama() -> torch.nn.Module:
    """A Llama of an unknown type whose MLP is called otherwise."""
    model = random_model("llama")
    model.config.model_type = "camel"
    for block in model.model.layers:
        block.mlp.opened = block.mlp.gate_proj
        del block.mlp.gate_proj
        block.mlp.forward = lambda x, mlp=block.mlp: mlp.down_proj(mlp.act_fn(mlp.opened(x)) * mlp.up_proj(x))
    return model


CAMEL = Family(
    layers=(
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        ("self_attn.o_proj",),
        ("mlp.opened", "mlp.up_proj"),
        ("mlp.down_proj",),
    )
)


def test_an_unknown_family_error_lists_the_known_ones_and_names_the_key():
    with pytest.raises(ValueError, match=r"model\.family") as error:
        wrap_model(renamed_llama(), tokenizer(), "camel")
    assert "'camel'" in str(error.value)
    assert all(family in str(error.value) for family in KNOWN)


def test_a_family_of_ones_own_works():
    lm = wrap_model(renamed_llama(), tokenizer(), "camel", CAMEL)
    torch.testing.assert_close(in_parts(lm, TOKENS), plain.logits(lm.model, TOKENS), **CLOSE)
    assert lm.num_blocks == NUM_BLOCKS and lm.subblock_layers("mlp") == ("mlp.opened", "mlp.up_proj", "mlp.down_proj")
    torch.testing.assert_close(in_parts(lm, TOKENS), in_parts(tiny("llama"), TOKENS), **CLOSE)


def test_a_family_that_names_what_is_not_there_is_refused_with_its_path():
    with pytest.raises(ValueError, match=r"model\.family names 'mlp\.opened'"):
        wrap_model(random_model("llama"), tokenizer(), "llama", CAMEL)


def test_an_unknown_type_with_familiar_parts_is_recognised():
    for family in ("llama", "phi3", "opt"):
        assert detect_family(tiny(family).model, "unheard_of") == KNOWN[family]


def test_missing_parts_are_named():
    model = tiny("llama").model
    assert missing_parts(model, KNOWN["llama"]) == []
    assert missing_parts(model, replace(CAMEL, norm="model.nrom"))[0] == "model.nrom"
    assert missing_parts(model, replace(CAMEL, blocks="model.layer")) == ["model.layer"]
    assert missing_parts(model, replace(KNOWN["llama"], layers=(("mlp.act_fn",),))) == ["mlp.act_fn"] * NUM_BLOCKS


def test_the_soft_cap_of_gemma_2_bounds_the_logits():
    lm = tiny("gemma2")
    cap = lm.model.config.final_logit_softcapping
    hidden = 1e6 * torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    assert float(lm.logits(hidden).abs().max()) == pytest.approx(cap, rel=1e-3)
