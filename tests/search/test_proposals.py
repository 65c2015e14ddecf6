"""Rules of proposals from level scores."""

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from evopress.search.proposals import fit_to_caps, spend_slack
from evopress.space.budget import Budget
from tests.search.searches import spends_budget
from tests.spaces import bit_space


def test_slack_is_spent_by_the_best_score_per_cost():
    space = bit_space([8, 8, 16])
    caps = Budget(metric="bits", target=2.5).caps(space)
    assert spend_slack(space, caps, (2, 2, 2), scores=[[-9.0, -3.0, 0.0], [-2.0, -1.0, 0.0], [-5.0, -4.0, 0.0]]) == (
        0,
        2,
        2,
    )


@given(
    st.lists(st.sampled_from([8, 16, 24]), min_size=2, max_size=8),
    st.sampled_from([2.0, 2.5, 3.0]),
    st.integers(0, 99),
)
@settings(deadline=None, max_examples=25)
def test_profiles_of_other_budgets_are_fitted_to_this_one_and_spend_it(sizes, target, seed):
    space, budget, rng = bit_space(sizes, (4, 3, 2)), Budget(metric="bits", target=target), Random(seed)
    profile = tuple(rng.randrange(3) for _ in sizes)
    scores = [[rng.uniform(-1, 1) for _ in unit.levels] for unit in space.units]
    fitted = fit_to_caps(space, budget.caps(space), profile, scores=scores)
    assert budget.holds(space, fitted)
    assert spends_budget(space, budget, fitted)


def test_units_are_lowered_where_the_fitness_loses_least():
    space = bit_space([8] * 3, (4, 3, 2))
    scores = [[0.0, 1.0, 5.0], [0.0, 0.5, 5.0], [0.0, 3.0, 6.0]]
    assert fit_to_caps(space, Budget(metric="bits", target=3.67).caps(space), (0, 0, 0), scores=scores) == (0, 1, 0)
