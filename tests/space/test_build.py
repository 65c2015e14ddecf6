"""The space of a model has a unit for every layer, and its costs and sizes are those of the real weights."""

import pytest
import torch

from evopress.compressors.drop import Drop
from evopress.compressors.gguf import GGUF
from evopress.compressors.magnitude import Magnitude
from evopress.compressors.rtn import RTN
from evopress.space.budget import Budget
from evopress.space.build import dense_bytes, drop_space, layer_space
from evopress.space.settings import SpaceSettings
from evopress.space.shapes import LayerShape
from evopress.space.units import Level, Space
from tests import plain
from tests.tiny_models import FAMILIES, NUM_BLOCKS, tiny

BITS = RTN(bits=(4, 3, 2), group_size=32)


def parameters(family: str) -> dict[str, torch.Tensor]:
    """All parameters; a head that is tied to the embeddings counts once."""
    return dict(tiny(family).model.named_parameters())


def layers_in(space: Space) -> list[str]:
    return [layer for unit in space.units for layer in unit.layers]


@pytest.mark.parametrize("tie", ["none", "engine"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_is_in_one_unit_in_the_order_of_blocks(family, tie):
    lm = tiny(family)
    space = layer_space(lm, BITS, SpaceSettings(tie=tie))
    groups = [
        [lm.layer_name(block, local) for local in group]
        for block in range(lm.num_blocks)
        for group in lm.layer_groups(block)
    ]
    assert layers_in(space) == [name for group in groups for name in group]
    expected = groups if tie == "engine" else [[name] for group in groups for name in group]
    assert [list(unit.layers) for unit in space.units] == expected
    assert len({unit.name for unit in space.units}) == len(space)
    for unit in space.units:
        assert unit.num_weights == sum(lm.model.get_submodule(layer).weight.numel() for layer in unit.layers)
        assert len(unit.blocks) == 1 and all(f".{unit.blocks[0]}." in layer for layer in unit.layers)


@pytest.mark.parametrize("tie", ["none", "engine"])
@pytest.mark.parametrize(
    "compressor",
    [BITS, RTN(bits=(8, 5), group_size=16, symmetric=True), Magnitude(base=0.5, num_levels=2, step=300)],
    ids=["bits", "symmetric", "sparsity"],
)
@pytest.mark.parametrize("family", ["llama", "phi3", "opt"])
def test_sizes_and_costs_are_those_of_the_compressed_weights(family, compressor, tie):
    lm = tiny(family)
    space = layer_space(lm, compressor, SpaceSettings(tie=tie))
    levels_of = plain.layer_levels(lm, compressor)
    for unit in space.units:
        for index, level in enumerate(unit.levels):
            weights = [levels_of[layer][index] for layer in unit.layers]
            assert level.size_bytes == sum(weight.size_bytes for weight in weights)
            if compressor.metric == "bits":
                assert level.cost == level.value * unit.num_weights
            else:
                assert level.cost == sum(int((weight.dense() != 0).sum()) for weight in weights)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_rest_of_the_model_takes_two_bytes_per_parameter(family):
    lm = tiny(family)
    everything = sum(parameter.numel() for parameter in parameters(family).values())
    for space in (layer_space(lm, BITS, SpaceSettings()), layer_space(lm, BITS, SpaceSettings(tie="engine"))):
        inside = {f"{layer}.weight" for layer in layers_in(space)}
        rest = sum(tensor.numel() for name, tensor in parameters(family).items() if name not in inside)
        assert space.fixed_bytes == 2 * rest and space.num_weights == everything - rest
    assert dense_bytes(lm) == 2 * everything
    assert drop_space(lm, Drop()).size_bytes((0,) * 2 * NUM_BLOCKS) == dense_bytes(lm)


@pytest.mark.parametrize("family", FAMILIES)
def test_tied_layers_change_neither_cost_nor_size_of_uniform_profiles(family):
    apart, tied = (layer_space(tiny(family), BITS, SpaceSettings(tie=tie)) for tie in ("none", "engine"))
    for level in range(3):
        assert apart.cost(apart.uniform(level)) == tied.cost(tied.uniform(level))
        assert apart.size_bytes(apart.uniform(level)) == tied.size_bytes(tied.uniform(level))
        assert Budget(metric="bits", target=4 - level).achieved(apart, apart.uniform(level)) == 4 - level


def test_layers_of_equal_size_or_of_the_same_kind_or_all_layers_trade():
    lm = tiny("llama")
    spaces = {trade: layer_space(lm, BITS, SpaceSettings(trade=trade)) for trade in ("size", "kind", "any")}
    assert {key: len(members) for key, members in spaces["size"].trade_groups.items()} == {
        str(64 * 64): 2 * NUM_BLOCKS,
        str(32 * 64): 2 * NUM_BLOCKS,
        str(64 * 128): 3 * NUM_BLOCKS,
    }
    assert set(spaces["kind"].trade_groups) == {local for group in lm.family.layers for local in group}
    assert all(len(members) == NUM_BLOCKS for members in spaces["kind"].trade_groups.values())
    assert spaces["any"].trade_groups == {"all": tuple(range(7 * NUM_BLOCKS))}


@pytest.mark.parametrize("family", FAMILIES)
def test_attentions_and_mlps_contain_the_weights_of_all_layers(family):
    space = drop_space(tiny(family), Drop())
    layers = layer_space(tiny(family), BITS, SpaceSettings())
    assert space.num_weights == layers.num_weights and space.fixed_bytes == layers.fixed_bytes
    assert {unit.kind for unit in space.units} == {"attention", "mlp"}
    attention = sum(unit.num_weights for unit in layers.units if "attn" in unit.name)
    assert sum(unit.num_weights for unit in space.units if unit.kind == "attention") == attention


def test_a_space_for_engines_keeps_the_first_attention():
    space = drop_space(tiny("llama"), Drop(), SpaceSettings(tie="engine"))
    assert [len(unit.levels) for unit in space.units] == [1, 2] + [2, 2] * (NUM_BLOCKS - 1)
    whole = drop_space(tiny("llama"), Drop(granularity="block"), SpaceSettings(tie="engine"))
    assert [len(unit.levels) for unit in whole.units] == [2] * NUM_BLOCKS


def test_embeddings_and_head_are_the_first_and_the_last_unit_and_one_where_they_share_a_weight():
    for family, names in (("llama", ["model.embed_tokens", "lm_head"]), ("gemma2", ["model.embed_tokens"])):
        lm = tiny(family)
        space = layer_space(lm, GGUF(), SpaceSettings())
        assert [unit.name for unit in space.units if not unit.blocks] == names
        assert [space.units[0].name, space.units[-1].name][: len(names)] == names
        norms = sum(parameter.numel() for parameter in lm.model.parameters() if parameter.ndim == 1)
        assert space.fixed_bytes == 2 * norms
        without = layer_space(lm, GGUF(embeddings=False), SpaceSettings())
        assert all(unit.blocks for unit in without.units)


class LevelsByWidth:
    """Layers with 64 inputs have two levels, and others one."""

    compresses_embeddings = False

    def levels(self, layer: LayerShape) -> list[Level]:
        size = layer.num_weights
        bits = (8, 4) if layer.cols == 64 else (8,)
        return [Level(label=f"{b}bit", value=b, cost=b * size, size_bytes=b * size // 8) for b in bits]


def test_layers_with_different_levels_cannot_be_one_unit():
    """GGUF types depend on the number of inputs, and the layers of an expert have different numbers of them."""
    lm = tiny("qwen3_moe")
    assert layer_space(lm, LevelsByWidth(), SpaceSettings(tie="none"))
    with pytest.raises(
        ValueError, match=r"are one unit, .* 8bit, 4bit, and those of the second 8bit: set space.tie=none"
    ):
        layer_space(lm, LevelsByWidth(), SpaceSettings(tie="expert"))
