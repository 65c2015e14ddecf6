"""A minibatch is a random choice of windows, decided by its seed alone."""

from random import Random

import torch
from hypothesis import given
from hypothesis import strategies as st

from evopress.data.windows import minibatch, warn_if_small


@given(
    st.integers(1, 12),
    st.integers(2, 9),
    st.integers(1, 150),
    st.integers(0, 2**32),
)
def test_a_minibatch_is_windows_without_repetition_and_the_same_for_the_same_seed(count, time, num_tokens, seed):
    windows = torch.arange(count * time).view(count, time)
    batch = minibatch(windows, num_tokens, Random(seed))
    assert torch.equal(batch, minibatch(windows, num_tokens, Random(seed)))
    assert len(set(batch[:, 0].tolist())) == len(batch)
    if num_tokens < time:
        assert batch.shape == (1, num_tokens)
    else:
        assert batch.shape == (min(count, -(-num_tokens // time)), time)
    assert all(torch.equal(row, windows[int(row[0]) // time][: len(row)]) for row in batch)


def test_minibatches_of_different_seeds_differ_and_reach_every_window():
    windows = torch.arange(40).view(10, 4)
    drawn = [tuple(sorted(minibatch(windows, 12, Random(seed))[:, 0].tolist())) for seed in range(60)]
    assert len(set(drawn)) > 30 and {first for starts in drawn for first in starts} == set(range(0, 40, 4))


def test_a_pool_that_is_too_small_causes_a_warning(caplog):
    windows = torch.zeros(2, 10, dtype=torch.int64)
    assert not warn_if_small(minibatch(windows, 20, Random(0)), 20)
    assert not warn_if_small(minibatch(windows, 8, Random(0), excerpt=4), 8)
    assert not caplog.records
    assert warn_if_small(minibatch(windows, 20, Random(0), excerpt=4), 20)
    assert "20 tokens" in caplog.text and "data.search_tokens gives only 2 windows, 4 tokens of each" in caplog.text


def test_an_excerpt_starts_with_the_bos_token_if_windows_do():
    windows = torch.arange(60).view(3, 20)
    starts = set()
    for seed in range(40):
        with_bos, without = (minibatch(windows, 15, Random(seed), excerpt=5, bos=bos) for bos in (True, False))
        assert torch.equal(with_bos[:, 1:], without[:, 1:])
        assert with_bos.shape == (3, 5) and set(with_bos[:, 0].tolist()) == {0, 20, 40}
        starts.add(int(without[0, 0]) % 20)
    assert len(starts) > 5
