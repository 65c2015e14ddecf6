"""Costs, sizes, uniform profiles and trade groups of a space."""

import pytest

from evopress.space.units import Space
from tests.spaces import bit_space, block_space, joint_space


@pytest.mark.parametrize("profile", [(), (0,), (0, 0, 0), (0, 3), (-1, 0)])
def test_a_profile_must_give_every_unit_a_level_that_it_has(profile):
    with pytest.raises(ValueError, match=r"units|levels"):
        bit_space([1, 1]).check(profile)


def test_costs_and_sizes_are_sums_over_units():
    space = Space(bit_space([8, 16, 24]).units, fixed_bytes=1000)
    profile = (0, 1, 2)
    assert space.cost(profile) == 4 * 8 + 3 * 16 + 2 * 24
    assert space.cost(profile, members=(2, 0)) == 4 * 8 + 2 * 24
    assert space.size_bytes(profile) == 1000 + 4 + 6 + 6
    assert space.with_costs_in_bytes().cost(profile) == 4 + 6 + 6
    assert space.num_weights == 48


def test_a_uniform_profile_uses_the_last_level_of_units_with_fewer_levels():
    assert block_space("subblock", keep_mlp=(1, 2)).uniform(1) == (1, 1, 1, 0, 1, 0, 1, 1)
    assert bit_space([1, 1]).uniform(2) == (2, 2)


@pytest.mark.parametrize(
    ("trade", "groups"),
    [
        ("size", {"10": (0, 2), "20": (1,), "30": (3,)}),
        ("kind", {"linear": (0, 1, 2, 3)}),
        ("any", {"all": (0, 1, 2, 3)}),
    ],
)
def test_trade_groups_are_by_size_by_kind_or_one_for_all(trade, groups):
    assert bit_space([10, 20, 10, 30]).with_trade_groups(trade).trade_groups == groups


def test_units_inside_a_dropped_parent_cost_nothing_do_not_trade_and_are_normalised_to_level_0():
    space = joint_space(1, sizes=(8, 16), bits=(4, 2))
    attention, first, second, mlp, third, fourth = range(6)
    profile = (1, 1, 0, 0, 1, 0)
    assert space.parents == (None, attention, attention, None, mlp, mlp)
    assert space.children == {attention: (first, second), mlp: (third, fourth)}
    assert [space.is_inside_dropped(index, profile) for index in range(6)] == [False, True, True, False, False, False]
    assert space.cost(profile) == 2 * 8 + 4 * 16
    assert space.tradable_units(profile, range(6)) == [third, fourth]
    assert space.normalized(profile) == (1, 0, 0, 0, 1, 0)
    assert space.uniform(1) == (0, 1, 1, 0, 1, 1)
