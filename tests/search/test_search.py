"""Rules of the moves, of Algorithm 1 and of the driver, on small made-up spaces with a known fitness."""

import json
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from evopress.search.base import Search
from evopress.search.baselines.random import Random as RandomSearch
from evopress.search.baselines.uniform import Uniform
from evopress.search.driver import SearchTask, run_search
from evopress.search.encoding import decode, encode
from evopress.search.evolution import Evolution
from evopress.search.log import SearchLog
from evopress.search.mutation import mutants, mutate, num_switches
from evopress.search.selection import Stage
from evopress.search.start_profiles import evenly_spaced_profile, random_profile, uniform_profile
from evopress.space.budget import Budget
from evopress.space.units import Profile, Space
from tests.spaces import BITS3, bit_space, drop_space, linear_fitness, play, sparse_space


def evolution(**changes) -> Evolution:
    settings = dict(
        generations=20,
        offspring=8,
        stages=[Stage(survivors=3, tokens=10), Stage(survivors=1, tokens=40)],
        initial_candidates=8,
        initial_tokens=20,
    )
    return Evolution(**{**settings, **changes})


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


def test_a_small_neighbourhood_gives_fewer_mutants_and_ends():
    space = bit_space([8, 8])
    children = mutants(space, BITS3.caps(space), [space.uniform(1)], count=50, rng=Random(0), max_switches=3)
    assert sorted(children) == [(0, 2), (2, 0)]


def test_uniform_is_used_only_where_it_spends_the_budget():
    space = bit_space([8, 8, 8])
    assert uniform_profile(space, BITS3) == (1, 1, 1)
    assert uniform_profile(space, Budget(metric="bits", target=2.67)) is None
    assert uniform_profile(bit_space([8, 8], (8, 4, 2)), BITS3) is None
    assert uniform_profile(space, Budget(metric="bits", target=9)) == (0, 0, 0)


def test_fractional_targets_lower_evenly_spaced_units_and_no_more_than_needed():
    space = bit_space([8] * 10)
    profile = evenly_spaced_profile(space, Budget(metric="bits", target=2.6))
    assert space.cost(profile) == 26 * 8
    assert profile == (1, 2, 1, 2, 1, 2, 1, 2, 1, 1) or sum(profile) == 14
    lowered = [i for i, level in enumerate(profile) if level == 2]
    gaps = [b - a for a, b in pairwise(lowered)]
    assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("target", [2.1, 2.37, 2.6, 2.95, 3.4, 4.9, 6.2])
def test_with_units_of_unequal_size_what_is_saved_grows_evenly_and_nothing_is_left_that_would_fit(target):
    sizes = [40, 12, 96, 48]
    space, budget = bit_space(sizes * 15, (8, 4, 2)), Budget(metric="bits", target=target)
    profile = evenly_spaced_profile(space, budget)
    levels = sorted(set(profile))
    assert len(levels) == 2 and levels[1] == levels[0] + 1
    (cap,) = budget.caps(space)
    slack = cap.slack(space, profile)
    widths = (8, 4, 2)
    gain = widths[levels[0]] - widths[levels[1]]
    assert 0 <= slack < min(size * gain for size, level in zip(sizes * 15, profile, strict=True) if level == levels[1])
    saved = due = 0.0
    for size, level in zip(sizes * 15, profile, strict=True):
        saved += size * gain * (level == levels[1])
        due += size * (widths[levels[0]] - target)
        assert abs(saved - due) <= 2 * max(sizes) * gain


def test_drop_profiles_drop_as_many_attentions_as_mlps():
    space, budget = drop_space(10), Budget(metric="drop", target=0.25)
    for seed in range(20):
        rng = Random(seed)
        parent = random_profile(space, budget, rng)
        for profile in [parent, *mutants(space, budget.caps(space), [parent], count=8, rng=rng, max_switches=3)]:
            assert [sum(profile[i] for i in members) for members in space.trade_groups.values()] == [3, 3]


def test_out_of_reach_budget_says_what_is_reached():
    with pytest.raises(ValueError, match=r"most compressed profile has 2: raise budget.target"):
        evenly_spaced_profile(bit_space([8, 8]), Budget(metric="bits", target=1.5))
    with pytest.raises(ValueError, match=r"has 0.7: lower budget.target$"):
        evenly_spaced_profile(sparse_space(2), Budget(metric="sparsity", target=0.8))


def test_evolution_finds_the_best_profile_of_a_linear_fitness():
    space = bit_space([8] * 8)
    weights = [float(w) for w in range(1, 9)]
    best, _ = play(evolution(generations=120), space, BITS3, linear_fitness(weights))
    assert best == (2, 2, 2, 2, 0, 0, 0, 0)


def test_evolution_asks_what_the_stages_say_and_the_parent_joins_only_the_last():
    space = bit_space([8] * 8)
    stages = [Stage(survivors=1, tokens=10), Stage(survivors=1, tokens=20), Stage(survivors=1, tokens=40)]
    _, asked = play(evolution(generations=1, stages=stages), space, BITS3, lambda profile: 0.0)
    parent = space.uniform(1)
    assert [batch.num_tokens for batch in asked] == [10, 20, 40]
    assert [len(batch.profiles) for batch in asked] == [8, 1, 2]
    assert [parent in batch.profiles for batch in asked] == [False, False, True]


def test_evolution_is_elitist():
    space = bit_space([8] * 8)
    parent = space.uniform(1)
    best, _ = play(evolution(), space, BITS3, lambda profile: 0.0 if profile == parent else 1.0)
    assert best == parent


def test_nan_fitness_is_never_selected():
    space = bit_space([8] * 8)
    parent = space.uniform(1)
    nan = float("nan")
    best, _ = play(evolution(), space, BITS3, lambda profile: 5.0 if profile == parent else nan)
    assert best == parent


def test_maximize_finds_the_worst():
    space = bit_space([8] * 4)
    weights = [1.0, 2.0, 3.0, 4.0]
    best, _ = play(evolution(generations=60, maximize=True), space, BITS3, linear_fitness(weights))
    assert best == (0, 0, 2, 2)


def test_a_population_keeps_as_many_parents():
    space, budget = drop_space(8), Budget(metric="drop", target=0.5)
    method = evolution(population=3, stages=[Stage(survivors=4, tokens=10), Stage(survivors=3, tokens=20)])
    _, asked = play(method, space, budget, lambda profile: float(sum(i * x for i, x in enumerate(profile))))
    last = [batch for batch in asked if batch.num_tokens == 20 and "stage" in batch.label]
    assert {len(batch.profiles) for batch in last} == {3 + 4}


def test_generations_for_depth_follow_the_paper():
    space, budget = drop_space(32), Budget(metric="drop", target=0.25)
    method = evolution(generations=None)
    assert method.num_questions(space, budget) == 1 + 2 * round(8 * 24 / 1.5)
    with pytest.raises(ValueError, match=r"for drops only: set search.generations"):
        play(method, bit_space([8] * 4), BITS3, sum)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": [Stage(survivors=9, tokens=1), Stage(survivors=1, tokens=1)]}, "fewer and fewer"),
        ({"stages": [Stage(survivors=2, tokens=1)]}, "search.population"),
        ({"offspring": 0}, "greater than 0"),
        ({"genrations": 3}, "genrations"),
    ],
)
def test_evolution_refuses_settings_that_cannot_work(changes, message):
    with pytest.raises(ValidationError, match=message):
        evolution(**changes)


def test_random_search_returns_its_fittest():
    space = bit_space([8] * 6)
    fitness = linear_fitness([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    best, asked = play(RandomSearch(candidates=30, tokens=10), space, BITS3, fitness)
    assert fitness(best) == min(fitness(profile) for profile in asked[0].profiles)
    assert all(BITS3.holds(space, profile) for profile in asked[0].profiles)


def test_uniform_search_asks_nothing():
    space = bit_space([8] * 6)
    assert play(Uniform(), space, BITS3, None) == ((1,) * 6, [])


class InterruptedSearchError(Exception):
    pass


def drive(path, method: Search, space: Space, stop_after: int | None = None, seed: int = 0) -> Profile:
    fitness = linear_fitness([float(i * 7 % 11) for i in range(len(space))])

    def answer(number, question):
        if number == stop_after:
            raise InterruptedSearchError
        return [fitness(profile) + 0.1 * number for profile in question.profiles], 1.5

    log = SearchLog(path, {"seed": seed, "search": "x"})
    return run_search(SearchTask(method, space, BITS3, seed), answer, log=log)


@pytest.mark.parametrize("stop_after", [0, 1, 2, 7, 39])
def test_a_killed_search_resumes_to_the_same_bytes(tmp_path, stop_after):
    space = bit_space([8] * 8)
    whole = drive(tmp_path / "whole.jsonl", evolution(), space)
    with pytest.raises(InterruptedSearchError):
        drive(tmp_path / "killed.jsonl", evolution(), space, stop_after=stop_after)
    with open(tmp_path / "killed.jsonl", "a") as file:
        file.write('{"ask": "batch", "tok')  # a line torn by the kill
    assert drive(tmp_path / "killed.jsonl", evolution(), space) == whole
    assert (tmp_path / "killed.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_log_of_other_settings_is_refused(tmp_path):
    space = bit_space([8] * 8)
    drive(tmp_path / "log.jsonl", evolution(), space, seed=1)
    with pytest.raises(ValueError, match="other settings \\(seed\\)"):
        drive(tmp_path / "log.jsonl", evolution(), space, seed=2)


def test_a_log_of_another_search_is_refused(tmp_path):
    space = bit_space([8] * 8)
    drive(tmp_path / "log.jsonl", evolution(), space)
    with pytest.raises(ValueError, match="another question"):
        drive(tmp_path / "log.jsonl", evolution(offspring=7), space)


def test_a_damaged_log_is_refused(tmp_path):
    space = bit_space([8] * 8)
    drive(tmp_path / "log.jsonl", evolution(), space)
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    lines[3] = lines[3][:20]
    (tmp_path / "log.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match="is damaged"):
        drive(tmp_path / "log.jsonl", evolution(), space)


def test_a_profile_that_breaks_the_budget_is_an_error(tmp_path):
    class Cheat(Uniform):
        def run(self, space, budget, rng):
            return space.uniform(0)
            yield

    with pytest.raises(RuntimeError, match="Cheat returned a profile that breaks the budget"):
        drive(tmp_path / "log.jsonl", Cheat(), bit_space([8] * 3))


@given(st.lists(st.integers(0, 61), max_size=300).map(tuple))
def test_profiles_survive_encoding(profile):
    assert decode(json.loads(json.dumps(encode(profile)))) == profile
