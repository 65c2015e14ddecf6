"""The space of a model counts its real weights and bytes; what a profile does to each block is what its units say."""

import pytest
import torch

from evopress.compressors.drop import Drop
from evopress.compressors.gguf import GGUF
from evopress.compressors.magnitude import Magnitude
from evopress.compressors.rtn import RTN
from evopress.space.apply import BlockChoice, choices_by_block
from evopress.space.budget import Budget
from evopress.space.build import dense_bytes, drop_space, layer_space
from evopress.space.settings import SpaceSettings
from evopress.space.units import Space
from tests import plain
from tests.tiny_models import FAMILIES, NUM_BLOCKS, tiny

BITS = RTN(bits=(4, 3, 2), group_size=32)


def parameters(family: str) -> dict[str, torch.Tensor]:
    """Each once, also where the head is tied to the embedding."""
    return dict(tiny(family).model.named_parameters())


def layers_in(space: Space) -> list[str]:
    return [layer for unit in space.units for layer in unit.layers]


@pytest.mark.parametrize("tie", ["none", "engine"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_is_in_one_unit_in_the_order_of_blocks(family, tie):
    lm = tiny(family)
    space = layer_space(lm, BITS, SpaceSettings(tie=tie))
    groups = [[f"{prefix}.{local}" for local in group] for prefix in lm.block_names for group in lm.family.layers]
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
def test_sizes_and_costs_are_those_of_the_weights_that_are_made(family, compressor, tie):
    lm = tiny(family)
    space = layer_space(lm, compressor, SpaceSettings(tie=tie))
    made = plain.layer_levels(lm, compressor)
    for unit in space.units:
        for index, level in enumerate(unit.levels):
            weights = [made[layer][index] for layer in unit.layers]
            assert level.size_bytes == sum(weight.size_bytes for weight in weights)
            if compressor.metric == "bits":
                assert level.cost == level.value * unit.num_weights
            else:
                assert level.cost == sum(int((weight.dense() != 0).sum()) for weight in weights)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_rest_of_the_model_takes_two_bytes_a_parameter(family):
    lm = tiny(family)
    everything = sum(parameter.numel() for parameter in parameters(family).values())
    for space in (layer_space(lm, BITS, SpaceSettings()), layer_space(lm, BITS, SpaceSettings(tie="engine"))):
        inside = {f"{layer}.weight" for layer in layers_in(space)}
        rest = sum(tensor.numel() for name, tensor in parameters(family).items() if name not in inside)
        assert space.fixed_bytes == 2 * rest and space.num_weights == everything - rest
    assert dense_bytes(lm) == 2 * everything
    assert drop_space(lm, Drop()).size_bytes((0,) * 2 * NUM_BLOCKS) == dense_bytes(lm)


@pytest.mark.parametrize("family", FAMILIES)
def test_tying_changes_neither_the_cost_nor_the_size_of_uniform_profiles(family):
    apart, tied = (layer_space(tiny(family), BITS, SpaceSettings(tie=tie)) for tie in ("none", "engine"))
    for level in range(3):
        assert apart.cost(apart.uniform(level)) == tied.cost(tied.uniform(level))
        assert apart.size_bytes(apart.uniform(level)) == tied.size_bytes(tied.uniform(level))
        assert Budget(metric="bits", target=4 - level).achieved(apart, apart.uniform(level)) == 4 - level


def test_layers_of_one_size_trade_or_of_one_kind_or_all():
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


@pytest.mark.parametrize("tie", ["none", "engine"])
def test_each_block_runs_with_the_levels_of_its_layers(tie):
    lm = tiny("llama")
    space = layer_space(lm, BITS, SpaceSettings(tie=tie))
    profile = tuple(index % 3 for index in range(len(space)))
    level_of = {layer: level for unit, level in zip(space.units, profile, strict=True) for layer in unit.layers}
    choices = choices_by_block(space, lm, profile)
    assert len(choices) == NUM_BLOCKS
    for prefix, choice in zip(lm.block_names, choices, strict=True):
        assert not choice.dropped
        assert {f"{prefix}.{local}": level for local, level in choice.levels} == {
            layer: level for layer, level in level_of.items() if layer.startswith(f"{prefix}.")
        }


@pytest.mark.parametrize(
    ("granularity", "profile", "dropped"),
    [
        ("subblock", (1, 0, 0, 1, 1, 1), [{"attention"}, {"mlp"}, {"attention", "mlp"}]),
        ("subblock", (0,) * 6, [set()] * 3),
        ("block", (0, 1, 0), [set(), {"attention", "mlp"}, set()]),
    ],
)
def test_each_block_runs_without_what_is_dropped(granularity, profile, dropped):
    lm = tiny("opt")
    choices = choices_by_block(drop_space(lm, Drop(granularity=granularity)), lm, profile)
    assert choices == [BlockChoice((), frozenset(parts)) for parts in dropped]


def test_no_profile_leaves_every_block_dense():
    lm = tiny("llama")
    assert choices_by_block(layer_space(lm, BITS, SpaceSettings()), lm, None) == [BlockChoice()] * NUM_BLOCKS


@pytest.mark.parametrize("family", FAMILIES)
def test_attentions_and_mlps_hold_all_weights_of_the_layers(family):
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
    for family, ends in (("llama", ["model.embed_tokens", "lm_head"]), ("gemma2", ["model.embed_tokens"])):
        lm = tiny(family)
        space = layer_space(lm, GGUF(), SpaceSettings())
        assert [unit.name for unit in space.units if not unit.blocks] == ends
        assert (space.units[0].name == ends[0] and space.units[-1].name == ends[-1]) or len(ends) == 1
        norms = sum(parameter.numel() for parameter in lm.model.parameters() if parameter.ndim == 1)
        assert space.fixed_bytes == 2 * norms
        without = layer_space(lm, GGUF(embeddings=False), SpaceSettings())
        assert all(unit.blocks for unit in without.units)
