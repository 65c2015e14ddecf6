"""Decoded levels are right, and stay within the memory limit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evopress.database.cache import DecodedLevels
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


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=20), st.sampled_from([1, 600, 1200, 10**9]))
def test_the_cache_returns_the_right_weights_within_its_limit(filled, keys, limit):
    cache = cache_of(filled, limit)
    size = 8 * 16 * 4
    for block, level in keys:
        assert torch.equal(cache.get(block, "layers.0.q", level), random_weight(8, 16, seed=10 * block + level))
        held = sum(tensor.nbytes for tensor in cache._weights.values())
        assert held == cache.kept_bytes <= max(limit, size)


def test_a_level_is_read_once_while_there_is_room(filled, monkeypatch):
    reads: list[tuple] = []
    read = Database.read
    monkeypatch.setattr(Database, "read", lambda self, *key: (reads.append(key), read(self, *key))[1])
    cache = cache_of(filled, 2 * 8 * 16 * 4)
    for level in (0, 1, 0, 2, 0, 1):  # 2 replaces 1, the least recently used
        cache.get(0, "layers.0.q", level)
    assert [level for _, _, level in reads] == [0, 1, 2, 1]


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decoded_weights_have_the_requested_dtype(kind, dtype, tmp_path):
    database = open_database(tmp_path)
    database.put(0, block_levels([WEIGHTS[kind]]))
    weight = cache_of(database, 10**6, dtype).get(0, "layers.0.q", 0)
    assert weight.dtype == dtype and torch.equal(weight, WEIGHTS[kind].dense(torch.float32).to(dtype))
