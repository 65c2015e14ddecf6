"""Rules of the search by measured swaps, on made-up spaces of drops."""

from dataclasses import replace
from math import nan
from random import Random

import pytest

from evopress.search.base import Batch
from evopress.search.start_profiles import random_profile
from evopress.search.swaps import Swaps, fit_drops_to_caps, path_of_swaps
from evopress.space.budget import Budget
from evopress.space.units import Profile
from tests.spaces import BITS3, bit_space, drop_space, linear_fitness, play

DROP = Budget(metric="drop", target=0.25)
SWAPS = Swaps(rounds=3, effect_tokens=16, line_tokens=32)


def test_it_drops_the_least_harmful_units_if_harms_add_up():
    space = drop_space(8)
    weights = [Random(1).random() + index % 5 for index in range(16)]
    best, questions = play(SWAPS, space, DROP, linear_fitness(weights))
    for side in (0, 1):
        order = sorted(range(side, 16, 2), key=lambda index: weights[index])
        assert sorted(i for i in range(side, 16, 2) if best[i]) == sorted(order[:2])
    assert len(questions) == SWAPS.num_questions(space, DROP)


def test_swaps_correct_mistakes_of_single_drops():
    """Units 0 and 2 are harmless alone and disastrous together; 4 is the next best."""
    space = drop_space(8)

    def fitness(profile: Profile) -> float:
        return 0.1 * sum(i * level for i, level in enumerate(profile)) + 100.0 * (profile[0] * profile[2])

    best, _ = play(SWAPS, space, DROP, fitness)
    assert [i for i, level in enumerate(best) if level] == [0, 1, 3, 4]


def test_attentions_and_mlps_of_different_blocks_can_be_dropped():
    space = drop_space(8)
    weights = [float((i // 2) if i % 2 else 8 - i // 2) for i in range(16)]
    best, _ = play(replace(SWAPS, rounds=4), space, DROP, linear_fitness(weights))
    assert [i for i, level in enumerate(best) if level] == [1, 3, 12, 14]


@pytest.mark.parametrize("seed", range(4))
def test_every_profile_of_a_comparison_holds_the_budget_and_spends_it(seed):
    space, rng = drop_space(10), Random(seed)
    table = {}
    best, questions = play(SWAPS, space, DROP, lambda profile: table.setdefault(profile, rng.random()))
    lines = [batch for batch in questions if isinstance(batch, Batch) and batch.num_tokens == 32]
    assert len(lines) == 3
    for profile in {best, *(profile for batch in lines for profile in batch.profiles)}:
        assert [cap.slack(space, profile) for cap in DROP.caps(space)] == [0, 0]


def test_a_swap_is_only_made_if_it_is_fitter():
    space = drop_space(6)
    start = fit_drops_to_caps(space, DROP.caps(space), space.uniform(0), effects=dict.fromkeys(range(12), 0.0))
    best, _ = play(SWAPS, space, DROP, lambda profile: 0.5 * (sum(profile) == 4 and profile != start))
    assert best == start


def test_units_with_a_nan_effect_are_dropped_last_and_not_swapped():
    space = drop_space(4)
    effects = {0: nan, 1: 0.3, 2: 0.2, 3: 0.1, 4: 0.4, 5: nan, 6: 0.5, 7: 0.6}
    caps = Budget(metric="drop", target=0.75).caps(space)
    profile = fit_drops_to_caps(space, caps, space.uniform(0), effects=effects)
    assert profile == (0, 1, 1, 1, 1, 0, 1, 1)
    assert path_of_swaps(space, caps, profile, effects=effects) == []


@pytest.mark.parametrize("target", [0.125, 0.5])
def test_a_start_from_another_budget_is_fitted_to_this_one(target):
    space, budget = drop_space(8), Budget(metric="drop", target=target)
    start = random_profile(space, DROP, Random(0))
    weights = [float(i) for i in range(16)]
    search = SWAPS.warm_started([start], 0.5)
    best, questions = play(search, space, budget, linear_fitness(weights))
    assert questions[0].profiles[0] == start
    assert [cap.slack(space, best) for cap in budget.caps(space)] == [0, 0]
    assert len(questions) < SWAPS.num_questions(space, budget)


def test_the_excerpt_applies_to_every_question():
    _, questions = play(replace(SWAPS, excerpt=16), drop_space(8), DROP, sum)
    assert {question.excerpt for question in questions} == {16}


def test_layers_are_refused():
    with pytest.raises(ValueError, match="use it with compress=drop"):
        play(SWAPS, bit_space([8] * 4), BITS3, sum)


def test_effects_are_averaged_over_rounds():
    """In every round, noise makes another kept unit look best. Only on average unit 4 is the best."""
    space, caps = drop_space(4), DROP.caps(drop_space(4))
    run = replace(SWAPS, rounds=3, max_swaps=1).run(space, DROP, Random(0))
    question = next(run)
    question = run.send([1.0, 2.0, 3.0, 4.0])  # blocks: the first is dropped
    noises = [{2: -0.9, 4: -0.5, 6: 0.0}, {2: 0.9, 4: -0.5, 6: -0.9}, {2: 0.9, 4: -0.5, 6: 0.9}]
    tried = []
    for noise in noises:
        start = question.profiles[0]
        harms = [1.0 + next((noise.get(i, 0.5) for i in range(8) if p[i] != start[i]), 0) for p in question.profiles]
        question = run.send(harms)
        tried.append(question.profiles[1])
        try:
            question = run.send([0.0, 1.0])  # no swap is fitter
        except StopIteration as stop:
            assert stop.value == start
    assert [next(i for i in (2, 4, 6) if profile[i]) for profile in tried] == [2, 4, 4]
    assert all(cap.slack(space, profile) == 0 for cap in caps for profile in tried)
