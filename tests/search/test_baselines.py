"""Each baseline does what its paper says, on spaces where the answer is known."""

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evopress.search.base import Batch, Table
from evopress.search.baselines.additive import Additive, error_table
from evopress.search.baselines.brute_force import BruteForce
from evopress.search.baselines.greedy import Greedy
from evopress.search.baselines.owl import Owl, block_sparsities, nearest_profile
from evopress.search.baselines.random import Random as RandomSearch
from evopress.search.baselines.scores import Scores
from evopress.search.baselines.uniform import Uniform
from evopress.search.fixed_profile import FixedProfile
from evopress.search.knapsack import solve_knapsack
from evopress.search.switches import all_switched
from evopress.space.budget import Budget
from evopress.space.profile_files import to_json, to_text
from evopress.space.units import Space
from tests.spaces import BITS3, bit_space, drop_space, linear_fitness, play, sparse_space

DROP25 = Budget(metric="drop", target=0.25)
HALF = Budget(metric="sparsity", target=0.5)


@given(
    st.lists(st.sampled_from([8, 16, 24]), min_size=1, max_size=5),
    st.lists(st.floats(0, 10), min_size=15, max_size=15),
    st.sampled_from([2.0, 2.4, 3.0, 3.7, 4.0]),
)
def test_knapsack_equals_enumeration(sizes, errors, target):
    space = bit_space(sizes)
    table = [errors[3 * i : 3 * i + 3] for i in range(len(sizes))]
    caps = Budget(metric="bits", target=target).caps(space)
    feasible = [p for p in product(range(3), repeat=len(sizes)) if caps[0].slack(space, p) >= 0]

    def total(profile):
        return sum(table[i][level] for i, level in enumerate(profile))

    best = solve_knapsack(space, caps, table)
    assert caps[0].slack(space, best) >= 0
    assert total(best) == pytest.approx(min(map(total, feasible)))


def test_knapsack_with_coarse_costs_holds_the_budget():
    space = bit_space([10007, 20011, 30013, 99991])
    caps = BITS3.caps(space)
    assert caps[0].slack(space, solve_knapsack(space, caps, [[0.0, 1.0, 2.0]] * 4)) >= 0


def test_knapsack_treats_errors_too_large_to_add_as_infinite():
    space = bit_space([8] * 3, (6, 5, 4, 3, 2))
    inf, huge = float("inf"), -(2.0**1022)
    errors = [[0.0, 0.0, 0.0, 0.0, inf], [inf, inf, huge, 0.0, 0.0], [inf, inf, 0.0, 0.0, 0.0]]
    best = solve_knapsack(space, BITS3.caps(space), errors)
    assert [errors[unit][level] for unit, level in enumerate(best)] == [0.0] * 3


def test_single_switches_change_one_unit_and_give_the_error_table():
    space = bit_space([8, 8])
    start = (1, 1)
    profiles = all_switched(space, start)
    assert sorted(profiles) == [(0, 1), (1, 0), (1, 2), (2, 1)]
    fitness = linear_fitness([3.0, 5.0])
    table = error_table(space, start, base=fitness(start), fitness={p: fitness(p) for p in profiles})
    assert table == [[-3.0, 0.0, 3.0], [-5.0, 0.0, 5.0]]


@pytest.mark.parametrize("errors", ["layer", "measured"])
def test_additive_search_is_exact_if_errors_add_up(errors):
    space = bit_space([8] * 6)
    weights = [1.0, 6.0, 2.0, 5.0, 3.0, 4.0]
    best, _ = play(
        Additive(errors=errors, tokens=8),
        space,
        BITS3,
        linear_fitness(weights),
        table=lambda question: [[0.0, w, 2 * w] for w in weights],
    )
    assert linear_fitness(weights)(best) == min(
        linear_fitness(weights)(p) for p in product(range(3), repeat=6) if BITS3.holds(space, p)
    )


def test_greedy_ends_on_the_budget_and_drops_the_least_important_units():
    space, weights = drop_space(8), [float(i % 5 + i / 100) for i in range(16)]
    best, questions = play(Greedy(tokens=8), space, DROP25, linear_fitness(weights))
    assert len(questions) == 4
    for members in space.trade_groups.values():
        dropped = [i for i in members if best[i]]
        assert dropped == sorted(sorted(members, key=lambda i: weights[i])[:2])


def test_greedy_in_larger_steps_never_goes_below_the_budget():
    space = bit_space([8] * 9)
    best, questions = play(Greedy(tokens=8, per_step=4), space, BITS3, linear_fitness([1.0] * 9))
    assert BITS3.caps(space)[0].slack(space, best) == 0
    assert len(questions) == 3


@given(st.lists(st.sampled_from([8, 16, 24, 40]), min_size=2, max_size=9), st.sampled_from([2.3, 3.0, 3.6]))
def test_greedy_spends_the_slack_of_its_last_step(sizes, target):
    space, budget = bit_space(sizes), Budget(metric="bits", target=target)
    best, _ = play(Greedy(tokens=8, per_step=9), space, budget, linear_fitness([1.0 + i for i in range(len(sizes))]))
    slack = budget.caps(space)[0].slack(space, best)
    assert 0 <= slack < min((size for size, level in zip(sizes, best, strict=True) if level), default=slack + 1)


@pytest.mark.parametrize("score", ["perplexity", "kl"])
def test_scores_by_removal_drop_the_blocks_that_matter_least(score):
    space = drop_space(8)
    weights = [float(10 - i // 2) for i in range(16)]
    best, questions = play(Scores(score=score, tokens=8), space, DROP25, linear_fitness(weights))
    assert best == (0,) * 12 + (1,) * 4
    assert questions[0].fitness == score
    assert len(questions[0].profiles) == 8


def test_shortgpt_drops_the_blocks_with_the_highest_similarity():
    space = drop_space(4)
    similarity = [0.9, 0.2, 0.99, 0.1]
    best, questions = play(
        Scores(score="cosine", tokens=8),
        space,
        Budget(metric="drop", target=0.5),
        lambda profile: 0.0,
        table=lambda question: [[similarity[i // 2]] for i in range(8)],
    )
    assert best == (1, 1, 0, 0, 1, 1, 0, 0)
    assert questions == [Table("cosine", 8, (2.0,))]


def test_window_drops_consecutive_blocks():
    best, questions = play(
        Scores(score="window", tokens=8),
        drop_space(4),
        Budget(metric="drop", target=0.5),
        lambda profile: 0.0,
        table=lambda question: [[0.1], [0.0], [0.8], [0.0], [0.3], [0.0], [0.0], [0.0]],
    )
    assert best == (0, 0, 1, 1, 1, 1, 0, 0)
    assert questions == [Table("cosine", 8, (4.0,))]


def keeping(space: Space, *indices: int) -> Space:
    """`space` where these units may not be dropped."""
    units = [replace(unit, levels=unit.levels[: 1 if i in indices else 2]) for i, unit in enumerate(space.units)]
    return Space(tuple(units))


def test_a_window_contains_no_block_that_must_stay():
    half, similar = Budget(metric="drop", target=0.5), [[0.9], [0.0], [0.8], [0.0], [0.3], [0.0], [0.0], [0.0]]
    windows = Scores(score="window", tokens=8)
    best, _ = play(windows, keeping(drop_space(4), 1), half, sum, table=lambda question: similar)
    assert best == (0, 0, 1, 1, 1, 1, 0, 0)
    with pytest.raises(ValueError, match="no 2 consecutive blocks that may all be dropped"):
        play(windows, keeping(drop_space(4), 2, 4), half, sum, table=lambda question: similar)


def test_a_window_of_no_blocks_drops_nothing():
    nothing = Budget(metric="drop", target=0.01)
    best, questions = play(Scores(score="window", tokens=8), drop_space(4), nothing, sum)
    assert (best, questions) == ((0,) * 8, [])


def test_scores_refuse_layers():
    with pytest.raises(ValueError, match="compress=drop"):
        play(Scores(score="kl", tokens=8), bit_space([8, 8]), BITS3, lambda profile: 0.0)


def test_brute_force_is_the_minimum_and_refuses_too_many():
    space, budget = drop_space(4), Budget(metric="drop", target=0.5)
    weights = [3.0, 1.0, 2.0, 9.0, 4.0, 8.0, 1.0, 7.0]
    best, questions = play(BruteForce(tokens=8), space, budget, linear_fitness(weights))
    assert len(questions[0].profiles) == 36
    assert linear_fitness(weights)(best) == min(map(linear_fitness(weights), questions[0].profiles))
    with pytest.raises(ValueError, match=r"lower budget.target, or keep fewer sub-blocks"):
        play(BruteForce(tokens=8), keeping(space, 0, 2, 4), budget, linear_fitness(weights))
    with pytest.raises(ValueError, match="36 masks, more than search"):
        play(BruteForce(tokens=8, max_profiles=35), space, budget, linear_fitness(weights))


def test_owl_keeps_more_weights_in_blocks_with_more_outliers():
    wanted = block_sparsities([0.1, 0.3, 0.2], target=0.5, spread=0.1)
    assert wanted == pytest.approx([0.6, 0.4, 0.5])
    assert block_sparsities([0.2, 0.2], target=0.5, spread=0.1) == [0.5, 0.5]


@given(st.lists(st.floats(0.35, 0.65), min_size=4, max_size=4))
def test_owl_profiles_meet_the_budget_exactly(wanted):
    space = sparse_space(4)
    (cap,) = HALF.caps(space)
    assert cap.slack(space, nearest_profile(space, cap, wanted)) == 0


def test_owl_returns_the_fittest_of_its_settings():
    space = sparse_space(4)
    method = Owl(multiples=[3, 5], spreads=[0.05, 0.1, 0.2], tokens=8)
    fitness = linear_fitness([1.0, 1.0, 5.0, 5.0, 2.0, 2.0, 3.0, 3.0])
    best, questions = play(
        method,
        space,
        HALF,
        fitness,
        table=lambda question: [[0.1, 0.2], [0.4, 0.1], [0.2, 0.2], [0.3, 0.4]],
    )
    assert isinstance(questions[1], Batch)
    assert fitness(best) == min(map(fitness, questions[1].profiles))


def test_a_fixed_profile_is_read_from_every_format_and_checked(tmp_path):
    space, profile = bit_space([8, 8, 8]), (0, 1, 2)
    for name, text in (("p.json", to_json(space, profile)), ("p.txt", to_text(space, profile))):
        (tmp_path / name).write_text(text)
        assert play(FixedProfile(path=str(tmp_path / name)), space, BITS3, lambda p: 0.0)[0] == profile
    (tmp_path / "over.txt").write_text(to_text(space, (0, 0, 2)))
    with pytest.raises(ValueError, match=r"has 3.33333 bits per weight, above budget.target=3"):
        play(FixedProfile(path=str(tmp_path / "over.txt")), space, BITS3, lambda p: 0.0)
    large, target = bit_space([8_000_000] * 3).with_costs_in_bytes(), Budget(metric="size", target="9MB")
    with pytest.raises(ValueError, match=r"takes 10000000 bytes, above budget.target=9MB"):
        play(FixedProfile(path=str(tmp_path / "over.txt")), large, target, lambda p: 0.0)
    with pytest.raises(ValueError, match="is not a file"):
        play(FixedProfile(path=str(tmp_path / "none")), space, BITS3, lambda p: 0.0)


def test_a_fixed_profile_may_drop_attentions_only_where_enough_is_dropped_in_all(tmp_path):
    space, file = drop_space(4), tmp_path / "p.txt"
    file.write_text("none\nattn\nattn\nnone\n")
    for target in (0.0, 0.125, 0.25):
        budget = Budget(metric="drop", target=target)
        profile, _ = play(FixedProfile(path=str(file)), space, budget, lambda p: 0.0)
        assert sum(profile) == 2 and budget.holds_in_sum(space, profile)
    with pytest.raises(ValueError, match=r"drops 0\.25 of .*less than budget\.target=0\.5.* to at most 0\.25"):
        play(FixedProfile(path=str(file)), space, Budget(metric="drop", target=0.5), lambda p: 0.0)


def test_random_search_returns_its_fittest():
    space = bit_space([8] * 6)
    fitness = linear_fitness([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    best, questions = play(RandomSearch(candidates=30, tokens=10), space, BITS3, fitness)
    assert fitness(best) == min(fitness(profile) for profile in questions[0].profiles)
    assert all(BITS3.holds(space, profile) for profile in questions[0].profiles)


def test_uniform_search_asks_no_questions():
    space = bit_space([8] * 6)
    assert play(Uniform(), space, BITS3, None) == ((1,) * 6, [])
