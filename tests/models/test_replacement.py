"""A model with replaced weights or dropped sub-blocks is the compressed model, and afterwards the dense one again."""

import pytest
import torch

from evopress.compressors.drop import Drop
from evopress.compressors.rtn import RTN
from evopress.database.cache import DecodedLevels
from evopress.space.apply import applied
from evopress.space.build import drop_space, layer_space
from evopress.space.settings import SpaceSettings
from tests import plain
from tests.models.blockwise import CLOSE, TOKENS, assert_same_state, state
from tests.tiny_models import FAMILIES, tiny


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_with_replaced_weights_is_the_compressed_one_and_then_dense_again(family, tmp_path):
    lm = tiny(family)
    compressor = RTN(bits=(4, 2), group_size=32)
    space, levels = layer_space(lm, compressor, SpaceSettings()), plain.layer_levels(lm, compressor)
    cpu = torch.device("cpu")
    weights = DecodedLevels(
        plain.filled_database(lm, levels, tmp_path), limit_bytes=10**9, dtype=torch.float32, device=cpu
    )
    profile = tuple(index % 2 for index in range(len(space)))
    before, modules = state(lm), list(lm.model.named_modules())
    pointers = [parameter.data_ptr() for parameter in lm.model.parameters()]
    with applied(lm, space, weights, profile) as model:
        logits = plain.logits(model, TOKENS)
    torch.testing.assert_close(logits, plain.logits(plain.assembled_model(lm, space, levels, profile), TOKENS), **CLOSE)
    assert_same_state(lm, before)
    assert list(lm.model.named_modules()) == modules
    assert [parameter.data_ptr() for parameter in lm.model.parameters()] == pointers
    assert not any(parameter.requires_grad for parameter in lm.model.parameters())


@pytest.mark.parametrize("granularity", ["subblock", "block"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_with_dropped_subblocks_is_the_one_with_zeros_and_then_dense_again(family, granularity):
    lm = tiny(family)
    space = drop_space(lm, Drop(granularity=granularity))
    profile = tuple(int(index % 3 != 1) for index in range(len(space)))
    before, modules, whole = state(lm), list(lm.model.named_modules()), plain.logits(lm.model, TOKENS)
    with applied(lm, space, None, profile) as model:
        logits = plain.logits(model, TOKENS)
        generated = model.generate(
            input_ids=TOKENS[:, :4], attention_mask=torch.ones(3, 4), max_new_tokens=3, do_sample=False
        )
    torch.testing.assert_close(logits, plain.logits(plain.assembled_model(lm, space, {}, profile), TOKENS), **CLOSE)
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
def test_an_error_while_parts_are_replaced_does_not_change_the_model(family):
    lm = tiny(family)
    before, modules = state(lm), list(lm.model.named_modules())
    name = lm.layer_name(0, lm.layers(0)[0])
    dropped = {0: frozenset({"attention", "mlp"}), 2: frozenset({"mlp"})}
    with pytest.raises(RuntimeError, match="in between"), lm.replaced({name: torch.zeros(64, 64)}, dropped):
        raise RuntimeError("in between")
    with pytest.raises(AttributeError), lm.replaced({name: torch.zeros(64, 64), "no.such.layer": TOKENS}, dropped):
        pass
    with pytest.raises(RuntimeError), torch.no_grad():
        lm.run_block(0, torch.zeros(1, 3, 65), {}, dropped=frozenset({"mlp"}))
    assert_same_state(lm, before)
    assert list(lm.model.named_modules()) == modules
