"""A model with shared layers, or whose blocks do not make up the whole model, is refused."""

from copy import deepcopy
from dataclasses import replace

import pytest
from transformers import AutoModelForCausalLM

from evopress.models.loading import wrap_model
from evopress.models.verification import check_blocks_make_up_model, check_layers_are_not_shared
from tests.tiny_models import config, random_model, tiny, tokenizer


def test_a_layer_that_shares_its_weight_is_refused():
    model = random_model("llama")
    model.model.layers[2].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    with pytest.raises(ValueError, match=r"layers\.2\.mlp\.up_proj.* the same tensor as .*layers\.0\.mlp\.up_proj"):
        wrap_model(model, tokenizer(), "shared")


def test_tied_embeddings_are_not_a_shared_layer():
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


def test_a_family_that_names_only_some_of_the_blocks_is_refused():
    """Half of the decoder in another list, which the family does not name."""
    lm = tiny("llama")
    short = replace(lm)
    short.__dict__["blocks"] = lm.blocks[:2]
    with pytest.raises(ValueError, match=r"blocks run one by one.*model\.family"):
        check_blocks_make_up_model(short)


def test_a_model_with_a_projection_between_blocks_and_head_is_refused_with_its_error():
    settings = deepcopy(config("opt"))
    settings.word_embed_proj_dim = 32
    with pytest.raises(ValueError, match=r"cannot run block by block \(.*shapes.*such as a projection"):
        wrap_model(AutoModelForCausalLM.from_config(settings).eval(), tokenizer(), "projected")
