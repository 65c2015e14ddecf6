"""A model that runs block by block computes what the whole model computes."""

import pytest
import torch

from evopress.compressors.drop import Drop
from evopress.models.loading import wrap_model
from evopress.space.build import drop_space
from tests import plain
from tests.models.blockwise import CLOSE, TOKENS, assert_same_state, blockwise_logits, state
from tests.tiny_models import ALL_FAMILIES, FAMILIES, SLIDING_WINDOW, random_model, tiny, tokenizer


@pytest.mark.parametrize("family", FAMILIES)
def test_the_blocks_one_by_one_give_the_logits_of_the_whole_model(family):
    lm = tiny(family)
    torch.testing.assert_close(blockwise_logits(lm, TOKENS), plain.logits(lm.model, TOKENS), **CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
def test_running_blocks_one_by_one_does_not_change_the_model(family):
    lm = tiny(family)
    before, whole = state(lm), plain.logits(lm.model, TOKENS)
    blockwise_logits(lm, TOKENS)
    assert_same_state(lm, before)
    assert torch.equal(plain.logits(lm.model, TOKENS), whole)


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text"])
def test_sliding_and_full_blocks_need_different_arguments(family):
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
def test_the_logits_of_a_window_do_not_depend_on_its_batch(family):
    lm = tiny(family)
    alone = torch.cat([blockwise_logits(lm, window) for window in TOKENS.split(1)])
    torch.testing.assert_close(blockwise_logits(lm, TOKENS), alone, **CLOSE)


@pytest.mark.parametrize("dropped", [{"attention"}, {"mlp"}, {"attention", "mlp"}], ids=["attention", "mlp", "both"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_dropped_subblock_adds_nothing(family, dropped):
    lm = tiny(family)
    space = drop_space(lm, Drop())
    profile = tuple(int(unit.blocks == (1,) and unit.kind in dropped) for unit in space.units)
    model = plain.assembled_model(lm, space, {}, profile)
    with torch.no_grad():
        hidden, kwargs = lm.embed(TOKENS)
        output = lm.run_block(1, hidden, kwargs[1], dropped=frozenset(dropped))
    states: list[torch.Tensor] = []
    block = model.get_submodule(lm.block_names[1])
    block.register_forward_hook(lambda module, args, output: states.append(output))
    block.register_forward_pre_hook(lambda module, args: (hidden, *args[1:]))
    with torch.no_grad():
        model(input_ids=TOKENS)
    expected = states[0][0] if isinstance(states[0], tuple) else states[0]
    torch.testing.assert_close(output, expected, **CLOSE)
    assert torch.equal(output, hidden) == (len(dropped) == 2)


@pytest.mark.parametrize("family", FAMILIES)
def test_identity_depends_on_configuration_and_weights_alone(family):
    first, again = (wrap_model(random_model(family), tokenizer(), name) for name in ("one", "other"))
    assert first.identity == again.identity
    changed = random_model(family)
    with torch.no_grad():
        changed.get_submodule(first.layer_name(2, first.layers(2)[-1])).weight[3, 5] += 1e-3
    assert wrap_model(changed, tokenizer(), "one").identity != first.identity
    configured = random_model(family)
    configured.config.max_position_embeddings += 1
    assert wrap_model(configured, tokenizer(), "one").identity != first.identity


def test_the_soft_cap_of_gemma_2_bounds_the_logits():
    lm = tiny("gemma2")
    cap = lm.model.config.final_logit_softcapping
    hidden = 1e6 * torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    assert float(lm.logits(hidden).abs().max()) == pytest.approx(cap, rel=1e-3)


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_a_model_with_other_parameters_shares_all_else_and_leaves_the_first_as_it_is(family):
    lm = tiny(family)
    before = state(lm)
    name = f"{lm.family.norm}.weight"
    other = lm.with_parameters({name: 2 * lm.model.get_parameter(name)})
    assert_same_state(lm, before)
    tensors, own = dict(lm.model.named_parameters()), dict(other.model.named_parameters())
    assert {key for key in tensors if own[key] is not tensors[key]} == {name}
    assert own.keys() == tensors.keys()
    with torch.no_grad():
        changed = plain.logits(other.model, TOKENS)
        assert torch.equal(plain.logits(lm.with_parameters({}).model, TOKENS), plain.logits(lm.model, TOKENS))
    assert not torch.equal(changed, plain.logits(lm.model, TOKENS))
    torch.testing.assert_close(blockwise_logits(other, TOKENS), changed, **CLOSE)
