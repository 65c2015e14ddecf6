"""Two budgets at once: a profile within the shares is within both."""

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evopress.search.knapsack import solve_knapsack
from evopress.space.budget import Budget
from evopress.space.shares import as_shares, whole
from evopress.space.units import Level, Space, Unit

COSTS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=3, max_size=3)


def spaces(costs: list[list[tuple[int, int]]]) -> tuple[Space, Space]:
    """Two spaces of the same units, whose levels cost less and less."""

    def space(place: int) -> Space:
        units = []
        for index, of_unit in enumerate(costs):
            own = sorted((pair[place] for pair in of_unit), reverse=True)
            levels = tuple(Level(label=str(cost), value=cost, cost=cost, size_bytes=cost) for cost in own)
            units.append(
                Unit(name=f"{index}", blocks=(index,), kind="x", layers=(f"{index}",), num_weights=1, levels=levels)
            )
        return Space(tuple(units))

    return space(0), space(1)


def size(target: int) -> Budget:
    return Budget(metric="size", target=f"{target}B")


@given(st.lists(COSTS, min_size=1, max_size=4), st.integers(1, 200), st.integers(1, 200))
def test_a_profile_within_the_shares_is_within_both_budgets(costs, first_target, second_target):
    first, second = spaces(costs)
    shared = as_shares((first, size(first_target)), (second, size(second_target)))
    (cap,) = whole(shared)
    for profile in product(range(3), repeat=len(costs)):
        if cap.slack(shared, profile) >= 0:
            assert first.cost(profile) <= first_target and second.cost(profile) <= second_target


@given(st.lists(COSTS, min_size=1, max_size=4), st.integers(1, 200))
def test_nothing_is_lost_where_one_budget_is_ample_or_both_are_alike(costs, target):
    first, second = spaces(costs)
    for other, other_target in ((second, 10**9), (first, target)):
        shared = as_shares((first, size(target)), (other, size(other_target)))
        (cap,) = whole(shared)
        for profile in product(range(3), repeat=len(costs)):
            room = target - first.cost(profile)
            if room >= 1 or room < 0:  # shares are rounded up
                assert (cap.slack(shared, profile) >= 0) == (room >= 0)


def test_the_search_trades_under_both():
    """The first unit is limited by bytes, the second one by seconds."""
    first, second = spaces([[(40, 4), (20, 2), (10, 1)], [(4, 40), (2, 20), (1, 10)]])
    shared = as_shares((first, size(44)), (second, size(24)))
    best = solve_knapsack(shared, whole(shared), [[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]])
    assert first.cost(best) <= 44 and second.cost(best) <= 24


def test_levels_stay_ordered_by_cost():
    first, second = spaces([[(40, 4), (20, 20), (10, 1)]])
    shared = as_shares((first, size(50)), (second, size(50)))
    costs = [level.cost for level in shared.units[0].levels]
    assert costs == sorted(costs, reverse=True)
    assert shared.priced == (first, second)


def test_a_budget_that_leaves_nothing_is_refused():
    first, second = spaces([[(1, 1), (1, 1), (1, 1)]])
    with pytest.raises(ValueError, match=r"leaves nothing to the layers: raise budget\.target"):
        as_shares((replace(first, fixed_bytes=10), size(10)), (second, size(10)))
