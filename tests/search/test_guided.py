"""Rules of the guided search, on made-up spaces with made-up tables."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from evopress.search.base import Batch, Table
from evopress.search.selection import Stage
from evopress.search.start_profiles import evenly_spaced_profile
from evopress.space.budget import Budget
from evopress.space.units import Space
from tests.search.searches import REFINEMENT, guided, spends_budget
from tests.spaces import BITS3, bit_space, drop_space, linear_fitness, play, sparse_space

HALF = Budget(metric="sparsity", target=0.5)


DROP = Budget(metric="drop", target=0.25)


def flat_table(space: Space, weights: list[float], second: float = 0.1):
    """Effects of a fitness that is linear in the levels, with some curvature for every step."""

    def answer(question: Table) -> list[list[float]]:
        assert question.kind == "switch_effects" and question.profile is not None
        return [
            [weight * (level - at), (second + weight) * abs(level - at)]
            for unit, weight, at in zip(space.units, weights, question.profile, strict=True)
            for level in range(len(unit.levels))
        ]

    return answer


@pytest.mark.slow
@given(
    st.lists(st.sampled_from([8, 16, 24, 40]), min_size=3, max_size=10),
    st.sampled_from([(4, 3, 2), (8, 4, 2), (6, 5, 4, 3, 2)]),
    st.sampled_from([2.2, 2.5, 3.0, 3.3]),
    st.integers(0, 99),
)
@settings(deadline=None, max_examples=25)
def test_every_candidate_holds_the_budget_and_spends_it(sizes, bits, target, seed):
    space, budget, rng = bit_space(sizes, bits), Budget(metric="bits", target=target), Random(seed)
    weights = [rng.random() for _ in sizes]
    best, questions = play(guided(), space, budget, linear_fitness(weights), seed, flat_table(space, weights))
    start = evenly_spaced_profile(space, budget)
    first, *later = [batch.profiles for batch in questions if isinstance(batch, Batch)]
    for profile in {best, *(p for profiles in later for p in profiles)} - {start}:
        assert budget.holds(space, profile)
        assert spends_budget(space, budget, profile)
    above = max(space.cost(space.uniform(level)) for level in range(len(bits)) if bits[level] >= target)
    assert all(space.cost(profile) <= above for profile in first)


@pytest.mark.parametrize(
    ("space", "budget", "cost"),
    [
        (bit_space([8] * 10), Budget(metric="bits", target=2.5), 200),
        (bit_space([8] * 10), BITS3, 240),
        (sparse_space(5), HALF, 500),
        (drop_space(8), DROP, 12),
        (bit_space([8] * 10), Budget(metric="size", target="30B"), 30),
    ],
    ids=str,
)
def test_budgets_are_met_exactly(space, budget, cost):
    space = space.with_costs_in_bytes() if budget.metric == "size" else space
    rng = Random(0)
    weights = [rng.random() for _ in space.units]
    best, _ = play(guided(), space, budget, linear_fitness(weights), table=flat_table(space, weights))
    assert space.cost(best) == cost


def test_sensitive_units_go_up_and_insensitive_ones_go_down():
    space, weights = bit_space([8] * 8), [9.0, 8.0, 7.0, 6.0, 0.4, 0.3, 0.2, 0.1]
    best, questions = play(
        guided(generations=0), space, BITS3, linear_fitness(weights), table=flat_table(space, weights)
    )
    assert best == (0, 0, 0, 0, 2, 2, 2, 2)
    assert [type(question) for question in questions] == [Table, Batch, Table, Batch]


def test_the_true_fitness_decides_and_not_the_table():
    space, weights = bit_space([8] * 8), [9.0, 8.0, 7.0, 6.0, 0.4, 0.3, 0.2, 0.1]
    start = evenly_spaced_profile(space, BITS3)
    best, _ = play(guided(), space, BITS3, lambda p: float(p != start), table=flat_table(space, weights))
    assert best == start
    best, _ = play(
        guided(), space, BITS3, lambda p: 1.0 if p == start else float("nan"), table=flat_table(space, weights)
    )
    assert best == start


def test_rounds_ignore_first_order_gains_of_switches_down():
    """The table predicts gains by going down, most in the last unit. Only the curvature counts, least in the first."""
    space = bit_space([8] * 4)

    def table(question):
        return [
            [[-1.0, 0.0, -100.0 * (1 + unit)][level], [0.1, 0.0, 0.3 * (1 + unit)][level]]
            for unit in range(4)
            for level in range(3)
        ]

    _, questions = play(guided(rounds=1, generations=0, dampings=[1.0]), space, BITS3, lambda p: 0.0, table=table)
    assert questions[1].profiles == ((1, 1, 1, 1), (2, 2, 0, 0))


@pytest.mark.parametrize(("down_slope", "moved"), [(0.0, False), (1.0, True)])
def test_generations_weight_first_order_gains_of_switches_down(down_slope, moved):
    """To first order, units 0 and 1 gain by going down. Units 2 and 3 gain little from the cost that this saves."""
    space = bit_space([8] * 4)

    def table(question):
        up, down = [-0.1, 0.0, 0.0], [0.0, 0.0, 0.2]
        return [
            [(-1.0 if unit < 2 else 0.0) * (level == 2) + up[level] * (unit > 1), down[level]]
            for unit in range(4)
            for level in range(3)
        ]

    method = guided(rounds=0, generations=1, dampings=[1.0], down_slope=down_slope, offspring=1)
    _, questions = play(method, space, BITS3, lambda p: 0.0, table=table)
    batches = [question for question in questions if isinstance(question, Batch)]
    tried = batches[0].profiles[0] if batches else (1, 1, 1, 1)
    assert (tried == (2, 2, 0, 0)) == moved


def test_generations_follow_the_stages_with_a_table_every_few():
    space, weights = bit_space([8] * 8), [float(i) for i in range(8)]
    method = guided(
        rounds=0, generations=3, generations_per_table=2, down_slope=0.0, free_share=0.3, excerpt=8, stage_excerpt=16
    )
    _, questions = play(method, space, BITS3, linear_fitness(weights), table=flat_table(space, weights))
    assert [q.num_tokens for q in questions] == [32, 32, 64, 32, 64, 32, 32, 64]
    assert [isinstance(q, Table) for q in questions] == [True, False, False, False, False, True, False, False]
    assert method.num_questions(space, BITS3) == len(questions)
    parent = evenly_spaced_profile(space, BITS3)
    assert parent not in questions[1].profiles and questions[2].profiles[0] == parent
    assert len(set(questions[1].profiles)) == len(questions[1].profiles)
    assert all(question.excerpt == (8 if isinstance(question, Table) else 16) for question in questions)


def test_the_search_ends_if_the_budget_leaves_no_other_profile():
    space = bit_space([8] * 4)
    lowest = Budget(metric="bits", target=2)
    best, questions = play(guided(), space, lowest, lambda p: 0.0, table=flat_table(space, [1.0] * 4))
    assert best == (2, 2, 2, 2)
    assert all(batch.profiles == ((2, 2, 2, 2),) for batch in questions if isinstance(batch, Batch))


@pytest.mark.slow
@given(st.lists(st.sampled_from([8, 16]), min_size=4, max_size=10), st.integers(0, 99))
@settings(deadline=None, max_examples=15)
def test_trade_groups_keep_their_cost_if_they_must_not_trade(sizes, seed):
    space, rng = bit_space(sizes), Random(seed)
    weights = [rng.random() for _ in sizes]
    table = flat_table(space, weights)
    best, _ = play(guided(trade="groups"), space, BITS3, linear_fitness(weights), seed, table)
    for members in space.trade_groups.values():
        assert space.cost(best, members) == sum(3 * space.units[i].num_weights for i in members)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": [Stage(survivors=2, tokens=8)]}, "set its survivors to 1"),
        ({"dampings": []}, "at least 1"),
        ({"dampings": [-1.0]}, "greater than 0"),
        ({"free_share": 1.5}, "less than or equal to 1"),
        ({"trade": "size"}, "'any' or 'groups'"),
    ],
)
def test_invalid_settings_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        guided(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": (0,) * 3}, "search.start does not fit this model and database: the profile has 3 entries"),
        ({"start": (9,) * 4}, "search.start .* has levels 0 to 2, not 9"),
        ({"others": [(1,) * 4, (1,) * 5, (1,) * 4]}, "search.others .* 5 entries"),
        ({"start": (0,) * 4, "rounds": 0}, "search.start exceeds the budget, .* set search.rounds to 1"),
    ],
)
def test_unusable_start_profiles_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        next(guided(**changes).run(bit_space([8] * 4), BITS3, Random(0)))


def test_others_join_the_last_comparison_of_the_rounds():
    space, weights = bit_space([8] * 8), [9.0, 8.0, 7.0, 6.0, 0.4, 0.3, 0.2, 0.1]
    one, other = (2, 2, 1, 2, 1, 0, 0, 0), (2, 1, 2, 1, 0, 2, 0, 0)
    method = guided(rounds=2, generations=0, others=[other]).warm_started(
        [(0,) * 8, one], 1.0
    )  # configured ones remain
    _, questions = play(method, space, BITS3, linear_fitness(weights), table=flat_table(space, weights))
    first, last = (question.profiles for question in questions if isinstance(question, Batch))
    assert not {one, other} & set(first)
    assert {one, other} < set(last)
    assert (0,) * 8 not in last  # it is fitted to the budget first


@pytest.mark.parametrize(
    ("configured", "by_position"), [(9, [2, 3, 4, 4, 5, 5]), (6, [1, 2, 2, 3, 3, 3]), (1, [1] * 6), (0, [0] * 6)]
)
def test_smaller_budgets_get_more_refinements_and_generations(configured, by_position):
    method = guided(generations=configured, refinements=configured, refinement=REFINEMENT)
    parts = [method.warm_started([], number / 6) for number in range(1, 7)]
    assert [part.generations for part in parts] == [part.refinements for part in parts] == by_position
