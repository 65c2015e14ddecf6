"""Rules of level-switch mutation, on small made-up spaces."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evopress.search.mutation import mutants, mutate, num_switches
from evopress.search.start_profiles import random_profile
from evopress.space.budget import Budget
from tests.spaces import BITS3, bit_space


@pytest.mark.slow
@given(
    st.lists(st.sampled_from([8, 16, 40]), min_size=2, max_size=12),
    st.sampled_from([(4, 3, 2), (8, 4, 2), (6, 5, 4, 3, 2)]),
    st.fractions(2, 4).map(lambda f: round(float(f), 3)),
    st.sampled_from(["size", "any"]),
    st.integers(0, 99),
)
def test_random_profiles_and_their_mutants_hold_the_budget(sizes, bits, target, trade, seed):
    space, budget, rng = bit_space(sizes, bits, trade), Budget(metric="bits", target=target), Random(seed)
    parent = random_profile(space, budget, rng)
    assert budget.holds(space, parent)
    for child in mutants(space, budget.caps(space), [parent], count=4, rng=rng, max_switches=3):
        assert budget.holds(space, child)
        assert child != parent


@given(st.lists(st.sampled_from([8, 16]), min_size=2, max_size=12), st.integers(0, 99))
def test_a_switch_between_units_of_equal_size_keeps_the_cost(sizes, seed):
    space, rng = bit_space(sizes), Random(seed)
    parent = space.uniform(1)
    child = mutate(space, BITS3.caps(space), parent, rng=rng, max_switches=3)
    if child is not None:
        assert space.cost(child) == space.cost(parent)
        assert sum(abs(new - old) for new, old in zip(child, parent, strict=True)) <= 6


def test_number_of_switches_is_the_smaller_of_two_draws():
    rng = Random(0)
    draws = [num_switches(rng, 3) for _ in range(9000)]
    shares = [draws.count(k) / len(draws) for k in (1, 2, 3)]
    assert shares == pytest.approx([5 / 9, 3 / 9, 1 / 9], abs=0.02)


def test_mutants_are_distinct_and_none_is_the_parent():
    space = bit_space([8] * 6)
    parent = space.uniform(1)
    children = mutants(space, BITS3.caps(space), [parent], count=20, rng=Random(0), max_switches=3)
    assert len(set(children)) == len(children) == 20
    assert parent not in children


def test_a_small_neighbourhood_gives_fewer_mutants():
    space = bit_space([8, 8])
    children = mutants(space, BITS3.caps(space), [space.uniform(1)], count=50, rng=Random(0), max_switches=3)
    assert sorted(children) == [(0, 2), (2, 0)]
