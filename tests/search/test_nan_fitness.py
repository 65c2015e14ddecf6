"""No search chooses a profile without a finite fitness as long as there is another."""

from dataclasses import replace

import pytest

from evopress.search.baselines.additive import Additive
from evopress.search.baselines.brute_force import BruteForce
from evopress.search.baselines.greedy import Greedy
from evopress.search.baselines.owl import Owl
from evopress.search.baselines.random import Random as RandomSearch
from evopress.search.baselines.scores import Scores
from evopress.search.evolution import Evolution
from evopress.search.guided import Guided
from evopress.search.knapsack import solve_knapsack
from evopress.search.refinement import Refinement
from evopress.search.selection import Stage
from evopress.space.budget import Budget
from evopress.space.units import Profile
from tests.spaces import BITS3, bit_space, drop_space, play, sparse_space

pytestmark = pytest.mark.counts("odd numbers")

NAN = float("nan")
STAGES = [Stage(survivors=2, tokens=8), Stage(survivors=1, tokens=16)]
BITS = bit_space([8] * 6)
DROPS, DROP = drop_space(4), Budget(metric="drop", target=0.25)
SPARSE, HALF = sparse_space(4), Budget(metric="sparsity", target=0.5)


def outlier_shares(question) -> list[list[float]]:
    return [[0.1 * (block + 1), 0.3 - 0.05 * block] for block in range(4)]


def nan_effects(question) -> list[list[float]]:
    return [[NAN, NAN] for unit in BITS.units for _ in unit.levels]


GUIDED = Guided(rounds=1, table_tokens=8, dampings=[1.0], line_tokens=8, generations=2, offspring=4, stages=STAGES)
REFINEMENT = Refinement(table_tokens=8, share=1, tokens=8, line_tokens=8)
SEARCHES = {
    "evolution": (
        Evolution(generations=3, offspring=4, stages=STAGES, initial_candidates=4, initial_tokens=8),
        BITS,
        BITS3,
        None,
    ),
    "guided": (GUIDED, BITS, BITS3, nan_effects),
    "refinements": (
        replace(GUIDED, rounds=0, generations=0, refinements=2, refinement=REFINEMENT),
        BITS,
        BITS3,
        nan_effects,
    ),
    "random": (RandomSearch(candidates=8, tokens=8), BITS, BITS3, None),
    "additive": (Additive(errors="measured", tokens=8), BITS, BITS3, None),
    "greedy": (Greedy(tokens=8), BITS, BITS3, None),
    "owl": (Owl(multiples=[3.0, 5.0], spreads=[0.05, 0.2], tokens=8), SPARSE, HALF, outlier_shares),
    "perplexity": (Scores(score="perplexity", tokens=8), DROPS, DROP, None),
    "brute_force": (BruteForce(tokens=8), DROPS, DROP, None),
}


ELITIST = ("evolution", "guided", "refinements")


def played(name: str, fitness) -> tuple[Profile, list]:
    method, space, budget, table = SEARCHES[name]
    return play(method, space, budget, fitness, table=table or (lambda question: []))


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_stops_with_the_reason_when_every_fitness_is_nan(name):
    with pytest.raises(ValueError, match=r"candidates is NaN or infinite.*model\.dtype"):
        played(name, lambda profile: NAN)


@pytest.mark.parametrize("name", [name for name in SEARCHES if name not in ("additive", "greedy", "perplexity")])
@pytest.mark.parametrize("first", [0, 1])
def test_a_profile_with_nan_is_never_chosen_over_one_with_a_number(name, first):
    """The fitness of every second profile is NaN; the first parent of an elitist search has a number."""
    space = SEARCHES[name][1]
    fitness_of: dict[Profile, float] = {}

    def fitness(profile: Profile) -> float:
        is_parent = profile == space.uniform(1) and name in ELITIST
        is_number = is_parent or len(fitness_of) % 2 == first
        return fitness_of.setdefault(profile, float(sum(profile[:3])) if is_number else NAN)

    best, _ = played(name, fitness)
    numbers = [value for value in fitness_of.values() if value == value]
    assert len(numbers) < len(fitness_of)
    assert fitness_of[best] == fitness_of[best] and (name in ELITIST or fitness_of[best] == min(numbers))


def nan_at_last_level(profile: Profile) -> float:
    """NaN when the first unit is at its last level; below that, better the further the first unit is compressed."""
    return NAN if profile[0] == 2 else 10.0 - 3 * profile[0] + sum(profile)


@pytest.mark.parametrize("name", ["additive", "greedy", "evolution", "random"])
def test_a_level_with_nan_is_avoided_when_the_budget_allows_another(name):
    best, _ = played(name, nan_at_last_level)
    assert best[0] != 2


def test_a_drop_with_nan_is_avoided():
    best, _ = played("perplexity", lambda profile: NAN if profile[0] else float(sum(profile[4:])))
    assert best[0] == best[1] == 0 and sum(best) == 2


def test_a_level_with_an_infinite_error_is_taken_when_the_budget_allows_no_other():
    space = bit_space([8] * 2)
    errors = [[0.0, NAN, float("inf")], [0.0, 1.0, 2.0]]
    assert solve_knapsack(space, Budget(metric="bits", target=3).caps(space), errors) == (0, 2)
    assert solve_knapsack(space, Budget(metric="bits", target=2).caps(space), errors) == (2, 2)
