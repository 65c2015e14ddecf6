"""Levels and drops in one space: what is inside a dropped unit has no effect and no cost."""

import json
from itertools import product

import pytest

from evopress.compressors.rtn import RTN
from evopress.report.choices import choices_of
from evopress.search.drops import dropped
from evopress.space.budget import Budget
from evopress.space.build import layer_space
from evopress.space.choices import BlockChoice, Choices
from evopress.space.profile_files import from_json, from_text, to_json, to_text
from evopress.space.settings import SpaceSettings
from tests.spaces import joint_space
from tests.tiny_models import tiny

SMALL = joint_space(2, sizes=(8, 24))


JOINT = SpaceSettings(drops="subblock", trade="any")


def test_units_inside_a_dropped_one_cost_nothing_at_any_level():
    kept = SMALL.uniform(1)
    without = dropped(SMALL, kept, 0)
    assert SMALL.cost(kept) == 3 * 2 * 2 * 32 and SMALL.cost(without) == 3 * 3 * 32
    assert SMALL.size_bytes(without) == SMALL.size_bytes(kept) * 3 // 4
    for levels in product(range(3), repeat=2):
        other = (1, *levels, *kept[3:])
        assert SMALL.cost(other) == SMALL.cost(without) and SMALL.size_bytes(other) == SMALL.size_bytes(without)
        assert SMALL.normalized(other) == without
        assert Budget(metric="bits", target=2.25).achieved(SMALL, other) == 2.25


@pytest.mark.parametrize("profile", [(0,) * 12, (1, 0, 0, 0, 2, 1, *(0, 1, 1, 0, 1, 2)), (1, 0, 0, 1, 0, 0) * 2])
def test_a_joint_profile_survives_both_file_formats(profile):
    for text in (to_text(SMALL, profile), to_json(SMALL, profile, seed=1)):
        read = from_json if text.startswith("{") else from_text
        assert read(SMALL, text) == profile


def test_a_file_names_what_is_dropped_and_its_costs_add_up():
    profile = (1, 0, 0, 0, 2, 1, *SMALL.uniform(1)[6:])
    assert to_text(SMALL, profile).splitlines()[:3] == [
        "blocks.0.attention: 1",
        "blocks.0.mlp: 0",
        "blocks.0.mlp.layer0: 2",
    ]
    text = to_json(SMALL, profile)
    assert text.count('"dropped"') == 3
    shown = choices_of(json.loads(text))
    assert [choice.label for choice in shown] == ["dropped", "dropped", "2bit", "3bit", *["3bit"] * 4]
    assert min(choice.kept for choice in shown) == shown[0].kept == 0
    assert from_text(SMALL, to_text(SMALL, SMALL.uniform(2)).replace("blocks.0.mlp: 0\n", "")) == SMALL.uniform(2)
    with pytest.raises(ValueError, match=r"blocks.0.mlp.layer0 needs exactly one level"):
        from_text(SMALL, to_text(SMALL, profile).replace("blocks.0.mlp.layer0: 2\n", ""))


@pytest.mark.parametrize("drops", ["subblock", "block"])
@pytest.mark.parametrize("family", ["llama", "phi3", "opt", "mixtral"])
def test_every_layer_of_a_block_is_inside_a_droppable_unit(family, drops):
    lm = tiny(family)
    plain = layer_space(lm, RTN(bits=(4, 3, 2), group_size=32), SpaceSettings(trade="any"))
    space = layer_space(lm, RTN(bits=(4, 3, 2), group_size=32), SpaceSettings(trade="any", drops=drops))
    assert [unit.name for unit in space.units if unit.layers] == [unit.name for unit in plain.units]
    assert space.num_weights == plain.num_weights and space.fixed_bytes == plain.fixed_bytes
    assert space.trade_groups == {"all": tuple(range(len(space)))}
    for level in range(3):
        assert space.size_bytes(space.uniform(level)) == plain.size_bytes(plain.uniform(level))
    for index, children in space.children.items():
        parent = space.units[index]
        parts = ("attention", "mlp") if drops == "block" else (parent.kind,)
        names = {
            lm.layer_name(*parent.blocks, local) for part in parts for local in lm.subblock_layers(*parent.blocks, part)
        }
        assert {layer for child in children for layer in space.units[child].layers} == names


def test_a_block_runs_with_the_levels_of_its_kept_sub_blocks():
    lm = tiny("llama")
    space = layer_space(lm, RTN(bits=(4, 3, 2), group_size=32), JOINT)
    profile = dropped(space, space.uniform(1), 0)
    first, second, _ = Choices(space, lm).of(profile)
    assert first == BlockChoice(tuple((local, 1) for local in lm.subblock_layers(0, "mlp")), frozenset({"attention"}))
    assert Choices(space, lm).of((*profile[:2], 2, *profile[3:]))[0] == first
    assert not second.dropped and len(second.levels) == 7


def test_drops_need_trade_between_units_of_all_sizes():
    with pytest.raises(ValueError, match=r"space.drops=subblock .* set space.trade=any"):
        SpaceSettings(drops="subblock")
