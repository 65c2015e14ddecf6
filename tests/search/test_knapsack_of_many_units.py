"""Budgets of many units: the relaxation is nearly exact and fast, and the queue of switches equals a look at all."""

from math import inf, isnan, nan
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evopress.search.knapsack import solve_knapsack
from evopress.search.lagrangian import Relaxation
from evopress.search.proposals import fit_to_caps, spend_slack
from evopress.space.budget import Budget, Cap
from evopress.space.units import Space
from tests.spaces import bit_space

BITS = (8, 6, 5, 4, 3, 2)
THREE_BITS = Budget(metric="bits", target=3)


def convex_errors(rng: Random, num_units: int) -> list[list[float]]:
    """Errors that quarter with every bit, of units that differ a hundredfold in sensitivity."""
    return [
        [sensitivity * 4.0**-bits for bits in BITS]
        for sensitivity in (10 ** rng.uniform(-1, 1) for _ in range(num_units))
    ]


def expert_space(num_units: int, rng: Random) -> Space:
    """Many units whose sizes have no common divisor that is of use."""
    return bit_space([rng.choice([786_432, 1_572_867, 2_097_155]) for _ in range(num_units)], BITS)


def bound(space: Space, cap: Cap, errors: list[list[float]]) -> float:
    """The largest lower bound on the summed error over many prices."""
    costs = np.array([[level.cost for level in unit.levels] for unit in space.units])
    relaxation = Relaxation(costs, np.array(errors), {}, cap.max_cost)
    return max(relaxation.lower_bound(10.0**power) for power in np.linspace(-11, -7, 300))


def total(errors: list[list[float]], profile) -> float:
    return sum(errors[unit][level] for unit, level in enumerate(profile))


@pytest.mark.slow
def test_thousands_of_units_spend_the_budget_and_are_within_a_thousandth_of_the_optimum():
    rng = Random(0)
    space = expert_space(18_624, rng)
    errors, (cap,) = convex_errors(rng, len(space)), THREE_BITS.caps(space)
    profile = solve_knapsack(space, (cap,), errors)
    assert 0 <= cap.slack(space, profile) < 1e-4 * cap.max_cost
    assert total(errors, profile) <= 1.001 * bound(space, cap, errors)


class CountedRows(list):
    """Scores that count how often the row of a unit is read."""

    num_reads = 0

    def __getitem__(self, index):
        self.num_reads += 1
        return super().__getitem__(index)


def test_a_budget_is_met_without_a_look_at_all_units_for_every_switch():
    rng = Random(1)
    space = expert_space(2_000, rng)
    scores = CountedRows(convex_errors(rng, len(space)))
    fit_to_caps(space, THREE_BITS.caps(space), space.uniform(0), scores=scores)
    assert scores.num_reads <= 3 * len(space) * len(BITS)


@given(
    st.lists(st.sampled_from([10_007, 20_011, 30_013, 99_991]), min_size=1, max_size=5),
    st.sampled_from([2.0, 2.3, 3.0, 4.5]),
    st.integers(0, 999),
)
@settings(deadline=None, max_examples=50)
def test_few_units_of_odd_sizes_lose_at_most_the_roundings_of_their_costs(sizes, target, seed):
    """The result is at least as good as the optimum of a budget that is smaller by one rounding per unit."""
    rng = Random(seed)
    space = bit_space(sizes, (4, 3, 2))
    errors = [[rng.uniform(0, 1) for _ in unit.levels] for unit in space.units]
    (cap,) = Budget(metric="bits", target=target).caps(space)
    profile = solve_knapsack(space, (cap,), errors)
    assert cap.slack(space, profile) >= 0
    rounding = -(-cap.max_cost // 20_000)
    smaller = Cap(cap.members, max(cap.max_cost - len(sizes) * rounding, space.cost(space.uniform(2))))
    every = [()]
    for unit in space.units:
        every = [(*head, level) for head in every for level in range(len(unit.levels))]
    best = min(total(errors, each) for each in every if smaller.slack(space, each) >= 0)
    assert total(errors, profile) <= best + 1e-9


@given(st.lists(st.floats(-1, 1), min_size=14, max_size=14), st.integers(0, 60))
@settings(deadline=None, max_examples=60)
def test_the_relaxation_meets_the_cap_and_is_not_below_its_bound_with_droppable_parents(numbers, max_cost):
    costs = np.array([[0, 0, 0], [30, 20, 10], [9, 6, 3], [0, 0, 0], [21, 14, 7]])
    errors = np.full((5, 3), inf)
    errors[[0, 3], 0] = 0.0
    errors[[0, 3], 1] = numbers[:2]
    errors[[1, 2, 4]] = np.array(numbers[2:11]).reshape(3, 3)
    costs[0, 0], costs[3, 0] = 13, 7  # keeping a parent costs its units at their cheapest
    costs[1] -= 10
    costs[2] -= 3
    costs[4] -= 7
    relaxation = Relaxation(costs, errors, {0: [1, 2], 3: [4]}, max_cost)
    levels = relaxation.solve()
    assert relaxation.cost(levels) <= max_cost
    assert all(relaxation.error(levels) >= relaxation.lower_bound(price) - 1e-9 for price in (0.0, 0.01, 0.1, 1.0))


def one_switch_after_another(space: Space, cap: Cap, profile, scores, lowest: float, highest: float | None):
    """What the queue of switches must equal: a look at all switches before each one."""
    while True:
        slack = cap.slack(space, profile)
        if highest is not None and slack >= 0:
            return profile
        limits = (lowest, slack if highest is None else highest)
        options = [
            ((scores[u][new] - scores[u][profile[u]]) / abs(extra), u, new)
            for u in cap.members
            for new, option in enumerate(space.units[u].levels)
            for extra in [option.cost - space.units[u].levels[profile[u]].cost]
            if extra and limits[0] <= extra <= limits[1]
        ]
        if not options:
            return profile
        _, chosen, new = min(options, key=lambda option: (isnan(option[0]), option))
        profile = (*profile[:chosen], new, *profile[chosen + 1 :])


@pytest.mark.parametrize("seed", range(20))
def test_the_queue_makes_the_switches_that_a_look_at_all_of_them_makes(seed):
    rng = Random(seed)
    space = bit_space([rng.choice([8, 16, 24]) for _ in range(7)], (5, 4, 3, 2))
    scores = [[rng.choice([rng.uniform(-1, 1), 0.5, nan]) for _ in unit.levels] for unit in space.units]
    profile = tuple(rng.randrange(4) for _ in space.units)
    (cap,) = THREE_BITS.caps(space)
    lowered = one_switch_after_another(space, cap, profile, scores, -inf, -1)
    assert fit_to_caps(space, (cap,), profile, scores=scores) == one_switch_after_another(
        space, cap, lowered, scores, 1, None
    )
    assert spend_slack(space, (cap,), lowered, scores=scores) == one_switch_after_another(
        space, cap, lowered, scores, 1, None
    )
