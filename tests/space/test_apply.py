"""What a profile chooses for every block is what its units say."""

import pytest

from evopress.compressors.drop import Drop
from evopress.compressors.rtn import RTN
from evopress.space.apply import BlockChoice, choices_by_block
from evopress.space.build import drop_space, layer_space
from evopress.space.settings import SpaceSettings
from tests.tiny_models import NUM_BLOCKS, tiny

BITS = RTN(bits=(4, 3, 2), group_size=32)


@pytest.mark.parametrize("tie", ["none", "engine"])
def test_a_block_runs_with_the_levels_of_its_layers(tie):
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
def test_a_block_runs_without_its_dropped_sub_blocks(granularity, profile, dropped):
    lm = tiny("opt")
    choices = choices_by_block(drop_space(lm, Drop(granularity=granularity)), lm, profile)
    assert choices == [BlockChoice((), frozenset(parts)) for parts in dropped]


def test_without_a_profile_every_block_is_dense():
    lm = tiny("llama")
    assert choices_by_block(layer_space(lm, BITS, SpaceSettings()), lm, None) == [BlockChoice()] * NUM_BLOCKS
