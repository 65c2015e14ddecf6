"""A model's family follows from its type or its parts; a model that matches no family is refused with a reason."""

from dataclasses import replace

import pytest
import torch

from evopress.compressors.rtn import RTN
from evopress.models.families import FAMILIES as KNOWN
from evopress.models.families import Family
from evopress.models.family_match import detect_family, missing_parts
from evopress.models.loading import wrap_model
from evopress.models.source import ModelSource
from evopress.space.build import FILE_WEIGHT_BYTES, layer_space
from evopress.space.settings import SpaceSettings
from tests import plain
from tests.models.blockwise import CLOSE, TOKENS, blockwise_logits
from tests.tiny_models import ALL_FAMILIES, MIXED, NUM_BLOCKS, NUM_EXPERTS, random_model, tiny, tokenizer


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
    assert lm.num_blocks == NUM_BLOCKS
    assert lm.subblock_layers(0, "mlp") == (
        "mlp.opened",
        "mlp.up_proj",
        "mlp.down_proj",
    )
    torch.testing.assert_close(blockwise_logits(lm, TOKENS), blockwise_logits(tiny("llama"), TOKENS), **CLOSE)


def test_the_error_for_a_family_with_a_missing_part_names_its_path():
    with pytest.raises(ValueError, match=r"model\.family names 'mlp\.opened'"):
        wrap_model(random_model("llama"), tokenizer(), "llama", CAMEL)


def test_an_unknown_type_with_the_parts_of_a_known_family_is_recognised():
    for family in ("llama", "phi3", "opt"):
        assert detect_family(tiny(family).model, "unheard_of") == KNOWN[family]


def test_missing_parts_are_listed():
    model = tiny("llama").model
    assert missing_parts(model, KNOWN["llama"]) == []
    assert missing_parts(model, replace(CAMEL, norm="model.nrom"))[0] == "model.nrom"
    assert missing_parts(model, replace(CAMEL, blocks="model.layer")) == ["model.layer"]
    assert missing_parts(model, replace(KNOWN["llama"], layers=(("mlp.act_fn",),))) == ["mlp.act_fn"]
    assert missing_parts(model, replace(KNOWN["llama"], kept={"mlp.gate": "small"})) == ["mlp.gate"]


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_units_kept_weights_vectors_and_the_rest_are_all_parameters(family):
    """Counted to the last one, and nothing with two dimensions is left out."""
    lm = tiny(family)
    space = layer_space(lm, RTN(bits=(2, 4), group_size=16), SpaceSettings())
    total = sum(parameter.numel() for parameter in lm.model.parameters())
    in_blocks = [(name, parameter) for block in lm.blocks for name, parameter in block.named_parameters()]
    paths = tuple(f"{path}." for path in lm.family.kept)
    kept = sum(parameter.numel() for name, parameter in in_blocks if name.startswith(paths))
    vectors = sum(p.numel() for name, p in in_blocks if p.ndim == 1 and not name.startswith(paths))
    outside = total - sum(parameter.numel() for _, parameter in in_blocks)
    assert space.num_weights + kept + vectors + outside == total
    assert space.fixed_bytes == FILE_WEIGHT_BYTES * (kept + vectors + outside)
    assert space.num_weights > 0.95 * (total - outside)


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_the_blocks_of_every_family_make_up_the_model(family):
    lm = tiny(family)
    torch.testing.assert_close(blockwise_logits(lm, TOKENS), plain.logits(lm.model, TOKENS), **CLOSE)


def test_a_family_that_leaves_out_a_layer_is_refused_with_its_share_of_the_block():
    short = replace(CAMEL, layers=CAMEL.layers[:3])
    share = 64 * 128 / sum(parameter.numel() for parameter in tiny("llama").blocks[0].parameters())
    with pytest.raises(ValueError, match=rf"mlp\.down_proj \({share:.1%} of .*model\.family\.layers.*family\.kept"):
        wrap_model(renamed_llama(), tokenizer(), "camel", short)
    lm = wrap_model(renamed_llama(), tokenizer(), "camel", replace(short, kept={"mlp.down_proj": "sensitive"}))
    assert "mlp.down_proj" not in lm.subblock_layers(0, "mlp")


def test_a_layer_that_is_also_kept_is_refused():
    with pytest.raises(ValueError, match=r"'mlp\.opened' in layers and in kept"):
        wrap_model(renamed_llama(), tokenizer(), "camel", replace(CAMEL, kept={"mlp": "all of it"}))


def test_the_error_for_an_unknown_type_names_the_layers_that_the_closest_family_leaves_out():
    model = random_model("llama")
    model.config.model_type = "altup"
    for block in model.model.layers:
        block.laurel = torch.nn.Linear(64, 16)
    with pytest.raises(ValueError, match=r"'altup'.* leaves out laurel \(\d\.\d% of the weights of a block\)"):
        wrap_model(model, tokenizer(), "altup")


def test_the_error_for_one_missing_part_names_it():
    model = random_model("llama")
    model.model.final = model.model.norm
    del model.model.norm
    with pytest.raises(ValueError, match=r"the closest one expects model\.norm, which the model does not have"):
        wrap_model(model, tokenizer(), "no-norm")


@pytest.mark.parametrize("family", MIXED)
def test_every_block_has_its_own_layers_and_all_of_its_matrices_are_layers_or_kept(family):
    lm = tiny(family)
    layers = [lm.layers(block) for block in range(NUM_BLOCKS)]
    assert len({tuple(names) for names in layers}) > 1
    for block, names in zip(lm.blocks, layers, strict=True):
        matrices = {name.removesuffix(".weight") for name, weight in block.named_parameters() if weight.ndim > 1}
        assert matrices - lm.family.kept.keys() == set(names)


def test_a_layer_that_only_some_blocks_have_must_be_named():
    model = random_model("llama")
    model.model.layers[1].adapter = torch.nn.Linear(64, 16)
    with pytest.raises(ValueError, match=r"leaves out adapter \(\d\.\d% of the weights of a block\)"):
        wrap_model(model, tokenizer(), "adapted")
    family = replace(KNOWN["llama"], layers=(*KNOWN["llama"].layers, ("adapter",)))
    lm = wrap_model(model, tokenizer(), "adapted", family)
    assert ["adapter" in lm.layers(block) for block in range(NUM_BLOCKS)] == [False, True, False]


def test_a_layer_that_is_a_linear_layer_in_some_blocks_only_must_not_be_left_out_in_the_others():
    model = random_model("llama")
    old = model.model.layers[1].mlp.down_proj
    model.model.layers[1].mlp.down_proj = torch.nn.Bilinear(8, 16, old.out_features)
    with pytest.raises(ValueError, match=r"leaves out mlp\.down_proj"):
        detect_family(model, "llama")


def test_settings_may_name_several_attentions():
    family = {"layers": [["mlp.down_proj"]], "attention": ["self_attn", "linear_attn"]}
    settings = ModelSource(name="mixed", path="", family=family).family
    assert settings.attention == ("self_attn", "linear_attn")
    lm = tiny("qwen3_next")
    assert [lm.subblock_path(block, "attention") for block in range(NUM_BLOCKS)] == [
        "linear_attn",
        "linear_attn",
        "self_attn",
    ]


def test_every_block_needs_an_attention_and_an_mlp():
    model = random_model("llama")
    del model.model.layers[2].self_attn
    assert missing_parts(model, KNOWN["llama"]) == ["self_attn"]
    assert missing_parts(model, replace(KNOWN["llama"], attention=("self_attn", "mixer"))) == ["self_attn or mixer"]


def test_families_whose_blocks_are_alike_have_the_same_identity_as_when_all_blocks_shared_one_list():
    """Otherwise their databases would have to be built again. Parts of a family that no block has are left out."""
    layers = [len(tiny(family).family.layers) for family in ("qwen3_moe", "deepseek_v3")]
    assert layers == [2 + 2 * NUM_EXPERTS, 4 + 2 * NUM_EXPERTS + 2]
    assert tiny("llama").family == KNOWN["llama"]
