"""Rules of Algorithm 1, on small made-up spaces with a known fitness."""

import pytest
from pydantic import ValidationError

from evopress.search.selection import Stage
from evopress.space.budget import Budget
from tests.search.searches import evolution
from tests.spaces import BITS3, bit_space, drop_space, linear_fitness, play


def test_it_finds_the_best_profile_of_a_linear_fitness():
    space = bit_space([8] * 8)
    weights = [float(w) for w in range(1, 9)]
    best, _ = play(evolution(generations=120), space, BITS3, linear_fitness(weights))
    assert best == (2, 2, 2, 2, 0, 0, 0, 0)


def test_it_follows_the_stages_and_the_parent_joins_only_the_last():
    space = bit_space([8] * 8)
    stages = [Stage(survivors=1, tokens=10), Stage(survivors=1, tokens=20), Stage(survivors=1, tokens=40)]
    _, questions = play(evolution(generations=1, stages=stages), space, BITS3, lambda profile: 0.0)
    parent = space.uniform(1)
    assert [batch.num_tokens for batch in questions] == [10, 20, 40]
    assert [len(batch.profiles) for batch in questions] == [8, 1, 2]
    assert [parent in batch.profiles for batch in questions] == [False, False, True]


def test_a_parent_survives_worse_offspring():
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


def test_maximize_finds_the_worst_profile():
    space = bit_space([8] * 4)
    weights = [1.0, 2.0, 3.0, 4.0]
    best, _ = play(evolution(generations=60, maximize=True), space, BITS3, linear_fitness(weights))
    assert best == (0, 0, 2, 2)


def test_a_population_keeps_as_many_parents():
    space, budget = drop_space(8), Budget(metric="drop", target=0.5)
    method = evolution(population=3, stages=[Stage(survivors=4, tokens=10), Stage(survivors=3, tokens=20)])
    _, questions = play(method, space, budget, lambda profile: float(sum(i * x for i, x in enumerate(profile))))
    last = [batch for batch in questions if batch.num_tokens == 20 and "stage" in batch.label]
    assert {len(batch.profiles) for batch in last} == {3 + 4}


def test_generations_null_is_the_number_of_the_paper_for_drops():
    space, budget = drop_space(32), Budget(metric="drop", target=0.25)
    method = evolution(generations=None)
    assert method.num_questions(space, budget) == 1 + 2 * round(8 * 24 / 1.5)
    with pytest.raises(ValueError, match=r"for a budget of drops only: set search.generations"):
        play(method, bit_space([8] * 4), BITS3, sum)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": [Stage(survivors=9, tokens=1), Stage(survivors=1, tokens=1)]}, "no stage may keep more"),
        ({"stages": [Stage(survivors=2, tokens=1)]}, "search.population"),
        ({"offspring": 0}, "greater than 0"),
        ({"genrations": 3}, "genrations"),
    ],
)
def test_invalid_settings_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        evolution(**changes)
