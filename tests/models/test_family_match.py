"""A model's family follows from its type or its parts; a model that matches no family is refused with a reason."""

from dataclasses import replace

import pytest
import torch

from evopress.models.families import FAMILIES as KNOWN
from evopress.models.families import Family
from evopress.models.family_match import detect_family, missing_parts
from evopress.models.loading import wrap_model
from tests import plain
from tests.models.blockwise import CLOSE, TOKENS, blockwise_logits
from tests.tiny_models import NUM_BLOCKS, random_model, tiny, tokenizer


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


def test_the_error_for_an_unknown_family_lists_the_known_ones_and_names_the_key():
    with pytest.raises(ValueError, match=r"model\.family") as error:
        wrap_model(renamed_llama(), tokenizer(), "camel")
    assert "'camel'" in str(error.value)
    assert all(family in str(error.value) for family in KNOWN)


def test_a_family_from_the_settings_works():
    lm = wrap_model(renamed_llama(), tokenizer(), "camel", CAMEL)
    torch.testing.assert_close(blockwise_logits(lm, TOKENS), plain.logits(lm.model, TOKENS), **CLOSE)
    assert lm.num_blocks == NUM_BLOCKS and lm.subblock_layers("mlp") == ("mlp.opened", "mlp.up_proj", "mlp.down_proj")
    torch.testing.assert_close(blockwise_logits(lm, TOKENS), blockwise_logits(tiny("llama"), TOKENS), **CLOSE)


def test_the_error_for_a_family_with_a_missing_part_names_its_path():
    with pytest.raises(ValueError, match=r"model\.family names 'mlp\.opened'"):
        wrap_model(random_model("llama"), tokenizer(), "llama", CAMEL)


def test_an_unknown_type_with_the_parts_of_a_known_family_is_recognized():
    for family in ("llama", "phi3", "opt"):
        assert detect_family(tiny(family).model, "unheard_of") == KNOWN[family]


def test_missing_parts_are_listed():
    model = tiny("llama").model
    assert missing_parts(model, KNOWN["llama"]) == []
    assert missing_parts(model, replace(CAMEL, norm="model.nrom"))[0] == "model.nrom"
    assert missing_parts(model, replace(CAMEL, blocks="model.layer")) == ["model.layer"]
    assert missing_parts(model, replace(KNOWN["llama"], layers=(("mlp.act_fn",),))) == ["mlp.act_fn"] * NUM_BLOCKS
