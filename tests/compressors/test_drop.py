"""What can be dropped: sub-blocks, blocks or pairs, except what must stay."""

import pytest
from pydantic import ValidationError

from evopress.compressors.drop import Drop
from evopress.space.shapes import BlockShape

BLOCKS = [BlockShape(f"layers.{index}", attention=10 + index, mlp=100 + index) for index in range(4)]


def test_sub_blocks_are_units_that_trade_with_their_kind():
    units = Drop().units(BLOCKS)
    assert [unit.name for unit in units[:3]] == ["layers.0.attention", "layers.0.mlp", "layers.1.attention"]
    assert [unit.blocks for unit in units] == [(0,), (0,), (1,), (1,), (2,), (2,), (3,), (3,)]
    assert [unit.kind for unit in units] == [unit.trade_group for unit in units] == ["attention", "mlp"] * 4
    assert [unit.num_weights for unit in units[:4]] == [10, 100, 11, 101]


def test_blocks_and_pairs_hold_all_weights_of_their_blocks():
    blocks, pairs = (Drop(granularity=granularity).units(BLOCKS) for granularity in ("block", "pair"))
    assert [(unit.blocks, unit.num_weights) for unit in blocks] == [
        ((0,), 110),
        ((1,), 112),
        ((2,), 114),
        ((3,), 116),
    ]
    assert [(unit.blocks, unit.num_weights) for unit in pairs] == [((0, 1), 222), ((2, 3), 230)]
    assert pairs[1].name == "layers.2.block+layers.3.block"
    assert {unit.trade_group for unit in blocks + pairs} == {"block"}


@pytest.mark.parametrize("granularity", ["subblock", "block", "pair"])
def test_a_unit_is_kept_for_two_bytes_a_weight_or_dropped_for_nothing(granularity):
    for unit in Drop(granularity=granularity).units(BLOCKS):
        kept, dropped = unit.levels
        assert (kept.label, kept.value, kept.cost, kept.size_bytes) == ("kept", 0, 1, 2 * unit.num_weights)
        assert (dropped.label, dropped.value, dropped.cost, dropped.size_bytes) == ("dropped", 1, 0, 0)
        assert unit.layers == ()


@pytest.mark.parametrize(
    ("granularity", "must_stay"),
    [
        ("subblock", ["layers.1.attention", "layers.2.mlp"]),
        ("block", ["layers.1.block", "layers.2.block"]),
        ("pair", ["layers.0.block+layers.1.block", "layers.2.block+layers.3.block"]),
    ],
)
def test_what_must_stay_has_no_other_level(granularity, must_stay):
    units = Drop(granularity=granularity, keep_attention=[1], keep_mlp=[2]).units(BLOCKS)
    assert [unit.name for unit in units if len(unit.levels) == 1] == must_stay
    assert all(unit.levels[0].label == "kept" for unit in units)


@pytest.mark.parametrize("key", ["keep_attention", "keep_mlp"])
@pytest.mark.parametrize("block", [-1, 4])
def test_a_block_that_is_not_there_is_refused(key, block):
    with pytest.raises(ValueError, match=rf"compress\.{key} names block {block}, but blocks are 0 to 3"):
        Drop(**{key: [0, block]}).units(BLOCKS)


def test_pairs_of_an_odd_number_of_blocks_are_refused():
    with pytest.raises(ValueError, match=r"compress\.granularity=pair needs an even number of blocks, not 3"):
        Drop(granularity="pair").units(BLOCKS[:3])


@pytest.mark.parametrize("change", [{"granularity": "layer"}, {"keep_mlp": ["a"]}, {"keep": [1]}])
def test_unknown_settings_are_refused_by_name(change):
    with pytest.raises(ValidationError, match=next(iter(change))):
        Drop(**change)
