"""Sums over arrays are the sums over units, one by one."""

from random import Random
from types import SimpleNamespace

import pytest

from evopress.space.choices import Choices
from evopress.space.units import Space
from tests.spaces import bit_space, drop_space, joint_space

SPACES = {"bits": bit_space([8, 16, 24] * 4), "drop": drop_space(5), "joint": joint_space(4)}


def profiles_of(space: Space, count: int) -> list[tuple[int, ...]]:
    rng = Random(0)
    return [tuple(rng.randrange(len(unit.levels)) for unit in space.units) for _ in range(count)]


@pytest.mark.parametrize("kind", SPACES)
def test_costs_and_sizes_are_sums_over_the_levels_of_units(kind):
    space = SPACES[kind]
    for profile in profiles_of(space, 20):
        levels = [space.level(index, profile) for index in range(len(space))]
        assert space.cost(profile) == sum(level.cost for level in levels)
        assert space.cost(profile, {0, len(space) - 1}) == levels[0].cost + levels[-1].cost
        assert space.cost(profile, []) == 0
        assert space.size_bytes(profile) == space.fixed_bytes + sum(level.size_bytes for level in levels)
        assert type(space.cost(profile)) is int


def test_a_level_that_a_unit_does_not_have_is_an_error():
    space = joint_space(1)
    with pytest.raises(IndexError):
        space.cost((2, *[0] * (len(space) - 1)))


@pytest.mark.parametrize("kind", SPACES)
def test_profiles_read_together_are_read_as_each_alone_and_share_what_they_agree_on(kind):
    space = SPACES[kind]
    blocks = 1 + max(block for unit in space.units for block in unit.blocks)
    lm = SimpleNamespace(num_blocks=blocks, block_names=[f"blocks.{block}" for block in range(blocks)])
    choices, profiles = Choices(space, lm), profiles_of(space, 6)
    together = choices.of_all([None, *profiles, *profiles])
    assert together == [choices.of(profile) for profile in (None, *profiles, *profiles)]
    assert len({tuple(map(id, choice)) for choice in together[1:]}) == len(set(profiles))
    for profile, of_blocks in zip(profiles, together[1:], strict=False):
        for block, choice in enumerate(of_blocks):
            units = [index for index, unit in enumerate(space.units) if block in unit.blocks]
            kept = [i for i in units if space.units[i].layers and not space.is_inside_dropped(i, profile)]
            assert [level for _, level in choice.levels] == [profile[i] for i in kept]
            dropped = {space.units[i].kind for i in units if not space.units[i].layers and profile[i]}
            assert choice.dropped == dropped
