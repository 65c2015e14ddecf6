"""Decoded levels are right, stay within the memory limit, and are decoded at most once in a visit to their block."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evopress.database.cache import BlockCache, DecodedLevels
from evopress.database.store import Database
from evopress.weights.dense import Kept
from tests.databases import WEIGHTS, block_levels, open_database, random_weight


def cache_of(database: Database, limit_bytes: int, dtype: torch.dtype = torch.float32) -> DecodedLevels:
    return DecodedLevels(database, limit_bytes=limit_bytes, dtype=dtype, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    database = open_database(tmp_path_factory.mktemp("filled"))
    for index in range(3):
        database.put(index, block_levels([Kept(random_weight(8, 16, seed=10 * index + level)) for level in range(3)]))
    return database


class Counted:
    """A cache of values of one byte, and the keys that it made."""

    def __init__(self, limit: int):
        self.cache: BlockCache[int] = BlockCache(limit, lambda value: 1)
        self.made: list[tuple[int, int]] = []

    def visit(self, block: int, keys) -> None:
        for key in keys:
            value = self.cache.get(block, key, lambda key=key: self.made.append((block, key)) or 100 * block + key)
            assert value == 100 * block + key


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=20), st.sampled_from([1, 600, 1200, 10**9]))
def test_the_cache_returns_the_right_weights_within_its_limit(filled, keys, limit):
    cache, size = cache_of(filled, limit), 8 * 16 * 4
    for block, level in keys:
        assert torch.equal(cache.get(block, "layers.0.q", level), random_weight(8, 16, seed=10 * block + level))
        assert size <= cache.kept_bytes <= max(limit, 3 * size)  # a block has three levels


@given(st.lists(st.tuples(st.integers(0, 3), st.sets(st.integers(0, 4))), max_size=30), st.integers(1, 20))
def test_a_visit_makes_each_value_at_most_once_and_keeps_no_more_than_the_limit_or_the_block(visits, limit):
    counted = Counted(limit)
    for block, keys in visits:
        counted.made.clear()
        counted.visit(block, [*sorted(keys), *sorted(keys)])
        assert len(counted.made) == len(set(counted.made))
        assert counted.cache.kept_bytes <= max(limit, 5)  # a block has five values


@pytest.mark.parametrize("limit", [4, 6, 11, 20])
def test_visits_in_turn_find_as_many_values_as_fit(limit):
    counted = Counted(limit)
    for _ in range(5):
        counted.made.clear()
        for block in range(10):
            counted.visit(block, range(2))
    found = 20 - len(counted.made)
    assert found >= limit - 2  # the block that is visited needs room, too


def test_values_that_are_no_longer_used_make_room():
    counted = Counted(10)
    for _ in range(2):
        for block in range(10):
            counted.visit(block, [0])
    for _ in range(4):
        counted.made.clear()
        for block in range(10):
            counted.visit(block, [1])
    assert not counted.made


def test_a_value_that_cannot_be_made_leaves_the_cache_usable():
    counted = Counted(1)
    counted.visit(0, [0])
    for block in (1, 2):
        with pytest.raises(ZeroDivisionError):
            counted.cache.get(block, 0, lambda: 1 // 0)
    counted.visit(3, [0, 1])
    counted.visit(0, [0])
    assert counted.cache.kept_bytes == 1


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decoded_weights_have_the_requested_dtype(kind, dtype, tmp_path):
    database = open_database(tmp_path)
    database.put(0, block_levels([WEIGHTS[kind]]))
    weight = cache_of(database, 10**6, dtype).get(0, "layers.0.q", 0)
    assert weight.dtype == dtype and torch.equal(weight, WEIGHTS[kind].dense(torch.float32).to(dtype))
