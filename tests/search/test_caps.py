"""Rules of caps that differ from those of the budget."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from evopress.search.caps import caps_on_random_units, tightened_caps
from evopress.search.proposals import best_by_scores, fit_to_caps
from evopress.search.start_profiles import evenly_spaced_profile
from evopress.space.budget import Budget
from tests.spaces import BITS3, bit_space


def test_caps_are_tightened_to_the_budget_in_equal_steps():
    space, budget = bit_space([8] * 10), Budget(metric="bits", target=2.5)
    caps, profile = budget.caps(space), space.uniform(0)
    costs = []
    for steps in (3, 2, 1):
        (cap,) = tightened_caps(space, caps, profile, num_steps=steps)
        profile = fit_to_caps(space, (cap,), profile, scores=[[0.0, 1.0, 2.5]] * 10)
        costs.append((cap.max_cost, space.cost(profile)))
    start = space.cost(space.uniform(0))
    target = caps[0].max_cost
    assert costs[-1] == (target, target)
    assert [cap for cap, _ in costs] == [start - (start - target) * step // 3 for step in (1, 2, 3)]
    assert tightened_caps(space, caps, profile, num_steps=5) == caps


@given(st.integers(0, 99))
def test_only_units_under_random_caps_move(seed):
    space, rng = bit_space([8] * 12), Random(seed)
    profile = evenly_spaced_profile(space, BITS3)
    scores = [[rng.uniform(-1, 1) if level != 1 else 0.0 for level in range(3)] for _ in range(12)]
    caps = caps_on_random_units(space, BITS3.caps(space), profile, share=0.4, rng=rng)
    child = best_by_scores(space, caps, profile, scores=scores)
    assert BITS3.holds(space, child)
    assert all(child[i] == profile[i] for i in set(range(12)) - set(caps[0].members))
