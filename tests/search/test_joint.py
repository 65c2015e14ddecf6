"""Searches of levels and drops in one space: slack from a drop is spent, and the budget is exact."""

from itertools import product
from math import inf
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evopress.compressors.rtn import RTN
from evopress.search.base import Batch, Table
from evopress.search.baselines.additive import Additive, error_table
from evopress.search.baselines.greedy import Greedy
from evopress.search.baselines.random import Random as RandomSearch
from evopress.search.drops import dropped, measure_drop_effects, restored
from evopress.search.evolution import Evolution
from evopress.search.guided import Guided
from evopress.search.knapsack import solve_knapsack
from evopress.search.mutation import mutants, mutate, switch_drops
from evopress.search.refinement import Refinement
from evopress.search.selection import Stage
from evopress.search.start_profiles import evenly_spaced_profile, random_profile, uniform_profile
from evopress.search.switches import all_switched
from evopress.space.budget import Budget, Cap
from evopress.space.build import layer_space
from evopress.space.settings import SpaceSettings
from evopress.space.units import Profile, Space
from tests.spaces import BITS3, joint_space, play
from tests.tiny_models import NUM_BLOCKS, tiny

SMALL = joint_space(2, sizes=(8, 24))


LARGE = joint_space(6)


JOINT = SpaceSettings(drops="subblock", trade="any")


def all_profiles(space: Space) -> list[Profile]:
    """Each model once."""
    every = product(*(range(len(unit.levels)) for unit in space.units))
    return [profile for profile in every if profile == space.normalized(profile)]


def dropped_in(space: Space, profile: Profile) -> list[int]:
    return [index for index in space.children if profile[index]]


def test_start_profiles_keep_all_sub_blocks_if_levels_can_meet_the_budget():
    assert all(not dropped_in(SMALL, SMALL.uniform(level)) for level in range(4))
    assert uniform_profile(LARGE, BITS3) == LARGE.uniform(1)
    for target in (2.0, 2.3, 2.5, 3.9, 4.0):
        budget = Budget(metric="bits", target=target)
        for profile in (evenly_spaced_profile(LARGE, budget), random_profile(LARGE, budget, Random(0))):
            assert budget.holds(LARGE, profile) and not dropped_in(LARGE, profile)


@given(st.floats(0.05, 1.99), st.integers(0, 20))
def test_below_the_smallest_level_start_profiles_drop_and_hold_the_budget(target, seed):
    budget = Budget(metric="bits", target=round(target, 3))
    for profile in (evenly_spaced_profile(LARGE, budget), random_profile(LARGE, budget, Random(seed))):
        assert budget.holds(LARGE, profile) and dropped_in(LARGE, profile)
        assert profile == LARGE.normalized(profile)


@given(st.floats(1.0, 4.0), st.integers(0, 1000))
@settings(max_examples=50)
def test_mutants_hold_the_budget_and_drops_spend_it(target, seed):
    budget, rng = Budget(metric="bits", target=round(target, 2)), Random(seed)
    (cap,) = caps = budget.caps(LARGE)
    profile = random_profile(LARGE, budget, rng)
    for _ in range(20):
        switched = switch_drops(LARGE, caps, profile, rng=rng)
        if switched is None:  # with all else at its lowest, nothing can be restored
            assert target < 2
            continue
        assert switched == LARGE.normalized(switched)
        raisable = [i for i in LARGE.tradable_units(switched, cap.members) if switched[i] > 0]
        gains = [LARGE.units[i].levels[switched[i] - 1].cost - LARGE.level(i, switched).cost for i in raisable]
        assert 0 <= cap.slack(LARGE, switched) < min(gains, default=10**9)
        profile = mutate(LARGE, caps, switched, rng=rng, max_switches=3) or switched
        assert cap.slack(LARGE, profile) >= 0 and profile == LARGE.normalized(profile)


def test_mutants_drop_restore_and_exchange_sub_blocks():
    rng, caps = Random(0), BITS3.caps(LARGE)
    parent = dropped(LARGE, LARGE.uniform(1), 4)
    seen = {
        tuple(dropped_in(LARGE, child)) for child in mutants(LARGE, caps, [parent], count=200, rng=rng, max_switches=3)
    }
    everything = set(LARGE.children)
    assert {(4,), ()} <= seen
    assert {pair for pair in seen if len(pair) == 2} == {tuple(sorted((4, i))) for i in everything - {4}}
    alike = {i for i in everything - {4} if LARGE.units[i].kind == "mlp"}
    assert {single for single in seen if len(single) == 1} == {(4,), *((i,) for i in alike)}


def test_a_restored_sub_block_gets_the_levels_of_another_of_its_kind():
    space = joint_space(3)
    profile = (1, 0, 0, 0, *space.uniform(1)[4:8], 0, 2, 0, 1, *space.uniform(1)[12:])
    assert restored(space, profile, 0, like=8)[:4] == (0, 2, 0, 1)
    assert restored(space, profile, 0, like=None)[:4] == (0, 2, 2, 2)


@pytest.mark.slow
@given(
    st.lists(st.floats(0, 10), min_size=16, max_size=16),
    st.lists(st.floats(0, 20), min_size=4, max_size=4),
    st.sampled_from([0.0, 0.7, 1.5, 2.0, 2.4, 3.0, 3.7, 4.0]),
)
@settings(max_examples=60, deadline=None)
def test_knapsack_equals_enumeration_of_levels_and_drops(errors, drops, target):
    space = joint_space(2, sizes=(8, 24), bits=(4, 2))
    of_unit, of_drop = iter(errors), iter(drops)
    table = [
        [0.0, next(of_drop)] if index in space.children else [next(of_unit), next(of_unit)]
        for index in range(len(space))
    ]
    (cap,) = caps = Budget(metric="bits", target=target).caps(space)

    def total(profile):
        return sum(table[i][level] for i, level in enumerate(profile) if not space.is_inside_dropped(i, profile))

    best = solve_knapsack(space, caps, table)
    assert cap.slack(space, best) >= 0 and best == space.normalized(best)
    feasible = [profile for profile in all_profiles(space) if cap.slack(space, profile) >= 0]
    assert total(best) == pytest.approx(min(map(total, feasible)))


def test_knapsack_keeps_undroppable_units_and_units_outside_the_cap():
    space = layer_space(
        tiny("llama"), RTN(bits=(4, 2), group_size=32), SpaceSettings(**{**vars(JOINT), "tie": "engine"})
    )
    errors = [[0.0, 0.0] if unit.layers else [0.0, -1.0][: len(unit.levels)] for unit in space.units]
    (cap,) = Budget(metric="bits", target=2).caps(space)
    best = solve_knapsack(space, (cap,), errors)
    assert [best[i] for i in space.children] == [0] + [1] * (2 * NUM_BLOCKS - 1)
    layers = tuple(space.tradable_units(space.uniform(0), cap.members))
    assert solve_knapsack(space, (Cap(layers, cap.max_cost),), errors) == space.uniform(1)


def test_single_switches_of_a_joint_profile_are_all_models_one_switch_away():
    start = dropped(SMALL, SMALL.uniform(1), 3)
    profiles = all_switched(SMALL, start)
    assert len(profiles) == len(set(profiles)) == 2 + 3 * (1 + 2 * 2) - 1
    assert all(profile == SMALL.normalized(profile) for profile in profiles)
    table = error_table(SMALL, start, base=1.0, fitness=dict.fromkeys(profiles, 3.0))
    assert table[0] == [0.0, 2.0] and table[3] == [2.0, 0.0] and table[4] == [0.0, 0.0, 0.0]


EVOLUTION = Evolution(
    generations=40,
    offspring=16,
    stages=[Stage(survivors=4, tokens=1), Stage(survivors=1, tokens=2)],
    initial_candidates=4,
    initial_tokens=1,
)


GUIDED = Guided(
    rounds=2,
    table_tokens=2,
    dampings=[1.0, 4.0],
    line_tokens=1,
    refinements=2,
    refinement=Refinement(table_tokens=2, share=0.5, tokens=1, line_tokens=1),
    generations=3,
    offspring=4,
    stages=[Stage(survivors=2, tokens=1), Stage(survivors=1, tokens=2)],
)


USELESS = {0, 4 * 7}
"""Sub-blocks of LARGE that can be dropped without loss."""


def loss(profile: Profile) -> float:
    """Additive: the loss by the levels of the kept units, plus a constant for each drop."""
    lost = [
        LARGE.units[i].num_weights * (4 - LARGE.level(i, profile).value)
        for i in LARGE.tradable_units(profile, range(48))
    ]
    return sum(lost) + sum(0 if i in USELESS else 500 for i in dropped_in(LARGE, profile))


def table_of_levels(question: Table) -> list[list[float]]:
    """A table for `loss`: it says nothing about drops, nor about units inside dropped ones."""
    assert question.profile is not None and not any(question.profile[i] > 1 for i in LARGE.children)
    live = LARGE.tradable_units(question.profile, range(len(LARGE)))
    effects = [
        LARGE.units[i].num_weights * (level - question.profile[i]) if i in live else 0
        for i, unit in enumerate(LARGE.units)
        for level in range(len(unit.levels))
    ]
    return [[min(0.0, effect), max(0.0, effect)] for effect in effects]


@pytest.mark.parametrize(
    "method",
    [
        EVOLUTION,
        RandomSearch(candidates=200, tokens=1),
        Additive(errors="measured", tokens=1),
        Greedy(tokens=1),
        GUIDED,
    ],
    ids=lambda method: type(method).__name__,
)
@pytest.mark.parametrize("target", [1.3, 2.5, 3.0])
def test_every_search_of_levels_drops_useless_sub_blocks(method, target):
    budget = Budget(metric="bits", target=target)
    best, questions = play(method, LARGE, budget, loss, table=table_of_levels)
    assert budget.holds(LARGE, best)
    assert method.num_questions(LARGE, budget) in (None, len(questions))
    # the first round stops half-way to the budget, and single changes may exceed it
    on_the_way = ("drops", "round 1/2", "switches")
    batches = [q for q in questions if isinstance(q, Batch) and not any(part in q.label for part in on_the_way)]
    tried = [p for q in batches for p in q.profiles]
    assert isinstance(method, Additive | Greedy) or all(budget.holds(LARGE, profile) for profile in tried)
    if not isinstance(method, RandomSearch):
        assert loss(best) < loss(evenly_spaced_profile(LARGE, budget)) and USELESS & set(dropped_in(LARGE, best))


def test_effects_of_drops_are_measured_at_the_current_profile():
    profile = dropped(LARGE, LARGE.uniform(1), 4)
    step = measure_drop_effects(LARGE, profile, 8)
    batch = next(step)
    assert isinstance(batch, Batch) and batch.num_tokens == 8 and len(set(batch.profiles)) == 13
    assert batch.fitness == "kl"  # independent of the run's fitness, because tables of levels are in KL
    with pytest.raises(StopIteration) as stop:
        step.send([loss(other) for other in batch.profiles])
    rows = stop.value.value
    assert rows[0] == [0.0, -48.0] and rows[8] == [0.0, 452.0] and rows[4] == [-452.0, 0.0]
    assert [rows[i] for i in LARGE.children[4]] == [[inf, 0.0, inf]] * 3
    assert set(rows) == {*LARGE.children, *LARGE.children[4]}
