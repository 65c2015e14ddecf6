"""Rules of the guided search, on made-up spaces with made-up tables, and as a whole on a tiny model."""

import json
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from evopress.compressors.drop import Drop
from evopress.compressors.gptq import GPTQ
from evopress.compressors.sparsegpt import SparseGPT
from evopress.data.settings import Data
from evopress.evaluation.eval_settings import Eval
from evopress.evaluation.evaluator import Evaluator, EvaluatorSettings
from evopress.models.source import ModelSource
from evopress.pipeline import Job, run_job
from evopress.runtime.tracking import Tracker
from evopress.search.base import Batch, Table
from evopress.search.caps import caps_on_random_units, tightened_caps
from evopress.search.encoding import encode, question_key
from evopress.search.guided import Guided
from evopress.search.proposals import best_by_scores, fit_to_caps, spend_slack
from evopress.search.refinement import Refinement
from evopress.search.selection import Stage
from evopress.search.start_profiles import evenly_spaced_profile
from evopress.space.budget import Budget
from evopress.space.settings import SpaceSettings
from evopress.space.units import Profile, Space
from tests.spaces import BITS3, bit_space, drop_space, linear_fitness, play, sparse_space
from tests.tiny_models import save_tiny

HALF = Budget(metric="sparsity", target=0.5)
DROP = Budget(metric="drop", target=0.25)
REFINEMENT = Refinement(table_tokens=32, share=0.5, tokens=32, line_tokens=64)


def guided(**changes) -> Guided:
    defaults = dict(
        rounds=2,
        table_tokens=32,
        dampings=[1.0, 4.0],
        line_tokens=32,
        generations=3,
        offspring=4,
        stages=[Stage(survivors=2, tokens=32), Stage(survivors=1, tokens=64)],
    )
    return Guided(**{**defaults, **changes})


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


def no_raise_fits(space: Space, budget: Budget, profile: Profile) -> bool:
    return all(
        space.units[i].levels[level].cost - space.units[i].levels[profile[i]].cost > cap.slack(space, profile)
        for cap in budget.caps(space)
        for i in cap.members
        for level in range(profile[i])
    )


@given(
    st.lists(st.sampled_from([8, 16, 24, 40]), min_size=3, max_size=10),
    st.sampled_from([(4, 3, 2), (8, 4, 2), (6, 5, 4, 3, 2)]),
    st.sampled_from([2.2, 2.5, 3.0, 3.3]),
    st.integers(0, 99),
)
@settings(deadline=None, max_examples=25)
def test_every_profile_asked_about_holds_the_budget_and_spends_it(sizes, bits, target, seed):
    space, budget, rng = bit_space(sizes, bits), Budget(metric="bits", target=target), Random(seed)
    weights = [rng.random() for _ in sizes]
    best, asked = play(guided(), space, budget, linear_fitness(weights), seed, flat_table(space, weights))
    start = evenly_spaced_profile(space, budget)
    first, *later = [batch.profiles for batch in asked if isinstance(batch, Batch)]
    for profile in {best, *(p for profiles in later for p in profiles)} - {start}:
        assert budget.holds(space, profile)
        assert no_raise_fits(space, budget, profile)
    above = max(space.cost(space.uniform(level)) for level in range(len(bits)) if bits[level] >= target)
    assert all(space.cost(profile) <= above for profile in first)


def test_the_cap_comes_down_to_the_budget_in_equal_steps():
    space, budget = bit_space([8] * 10), Budget(metric="bits", target=2.5)
    caps, profile = budget.caps(space), space.uniform(0)
    costs = []
    for steps in (3, 2, 1):
        (cap,) = tightened_caps(space, caps, profile, num_steps=steps)
        profile = fit_to_caps(space, (cap,), profile, scores=[[0.0, 1.0, 2.5]] * 10)
        costs.append((cap.max_cost, space.cost(profile)))
    start = space.cost(space.uniform(0))
    target = caps[0].max_cost
    assert costs[-1] == (target, target)
    assert [cap for cap, _ in costs] == [start - (start - target) * step // 3 for step in (1, 2, 3)]
    assert tightened_caps(space, caps, profile, num_steps=5) == caps


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


def test_what_matters_goes_up_and_what_does_not_pays():
    space, weights = bit_space([8] * 8), [9.0, 8.0, 7.0, 6.0, 0.4, 0.3, 0.2, 0.1]
    best, asked = play(guided(generations=0), space, BITS3, linear_fitness(weights), table=flat_table(space, weights))
    assert best == (0, 0, 0, 0, 2, 2, 2, 2)
    assert [type(question) for question in asked] == [Table, Batch, Table, Batch]


def test_true_fitness_decides_not_the_table():
    space, weights = bit_space([8] * 8), [9.0, 8.0, 7.0, 6.0, 0.4, 0.3, 0.2, 0.1]
    start = evenly_spaced_profile(space, BITS3)
    best, _ = play(guided(), space, BITS3, lambda p: float(p != start), table=flat_table(space, weights))
    assert best == start
    best, _ = play(
        guided(), space, BITS3, lambda p: 1.0 if p == start else float("nan"), table=flat_table(space, weights)
    )
    assert best == start


def test_first_order_gains_of_downs_are_not_believed():
    """Every unit claims to gain by going down; only the ups' claims and the curvature may count."""
    space = bit_space([8] * 4)
    first, second = {0: -1.0, 1: 0.0, 2: -100.0}, {0: 0.1, 1: 0.0, 2: 0.3}

    def table(question):
        return [[first[level], second[level] * (1 + unit)] for unit in range(4) for level in range(3)]

    _, asked = play(guided(rounds=1, generations=0, dampings=[1.0]), space, BITS3, lambda p: 0.0, table=table)
    assert asked[1].profiles == ((1, 1, 1, 1), (2, 2, 0, 0)) or asked[1].profiles[1] == (2, 0, 0, 2)
    assert asked[1].profiles[1].count(2) == 2


@pytest.mark.parametrize(("down_slope", "moved"), [(0.0, False), (1.0, True)])
def test_in_generations_first_order_gains_of_downs_count_by_their_weight(down_slope, moved):
    """Units 0 and 1 gain by going down, to first order; what that saves is worth little to units 2 and 3."""
    space = bit_space([8] * 4)

    def table(question):
        up, down = [-0.1, 0.0, 0.0], [0.0, 0.0, 0.2]
        return [
            [(-1.0 if unit < 2 else 0.0) * (level == 2) + up[level] * (unit > 1), down[level]]
            for unit in range(4)
            for level in range(3)
        ]

    method = guided(rounds=0, generations=1, dampings=[1.0], down_slope=down_slope, offspring=1)
    _, asked = play(method, space, BITS3, lambda p: 0.0, table=table)
    batches = [question for question in asked if isinstance(question, Batch)]
    tried = batches[0].profiles[0] if batches else (1, 1, 1, 1)
    assert (tried == (2, 2, 0, 0)) == moved


def test_generations_ask_what_the_stages_say_with_a_table_every_few():
    space, weights = bit_space([8] * 8), [float(i) for i in range(8)]
    method = guided(
        rounds=0, generations=3, generations_per_table=2, down_slope=0.0, free_share=0.3, excerpt=8, stage_excerpt=16
    )
    _, asked = play(method, space, BITS3, linear_fitness(weights), table=flat_table(space, weights))
    assert [q.num_tokens for q in asked] == [32, 32, 64, 32, 64, 32, 32, 64]
    assert [isinstance(q, Table) for q in asked] == [True, False, False, False, False, True, False, False]
    assert method.num_questions(space, BITS3) == len(asked)
    parent = evenly_spaced_profile(space, BITS3)
    assert parent not in asked[1].profiles and asked[2].profiles[0] == parent
    assert len(set(asked[1].profiles)) == len(asked[1].profiles)
    assert all(question.excerpt == (8 if isinstance(question, Table) else 16) for question in asked)


def test_where_the_budget_leaves_no_other_profile_the_search_ends():
    space = bit_space([8] * 4)
    lowest = Budget(metric="bits", target=2)
    best, asked = play(guided(), space, lowest, lambda p: 0.0, table=flat_table(space, [1.0] * 4))
    assert best == (2, 2, 2, 2)
    assert all(batch.profiles == ((2, 2, 2, 2),) for batch in asked if isinstance(batch, Batch))


@given(st.lists(st.sampled_from([8, 16]), min_size=4, max_size=10), st.integers(0, 99))
@settings(deadline=None, max_examples=15)
def test_trade_groups_keep_their_cost_when_asked_to(sizes, seed):
    space, rng = bit_space(sizes), Random(seed)
    weights = [rng.random() for _ in sizes]
    table = flat_table(space, weights)
    best, _ = play(guided(trade="groups"), space, BITS3, linear_fitness(weights), seed, table)
    for members in space.trade_groups.values():
        assert space.cost(best, members) == sum(3 * space.units[i].num_weights for i in members)


@given(st.integers(0, 99))
def test_only_thawed_units_move(seed):
    space, rng = bit_space([8] * 12), Random(seed)
    profile = evenly_spaced_profile(space, BITS3)
    scores = [[rng.uniform(-1, 1) if level != 1 else 0.0 for level in range(3)] for _ in range(12)]
    caps = caps_on_random_units(space, BITS3.caps(space), profile, share=0.4, rng=rng)
    child = best_by_scores(space, caps, profile, scores=scores)
    assert BITS3.holds(space, child)
    assert all(child[i] == profile[i] for i in set(range(12)) - set(caps[0].members))


def test_what_is_left_over_goes_where_it_scores_best():
    space = bit_space([8, 8, 16])
    caps = Budget(metric="bits", target=2.5).caps(space)
    assert spend_slack(space, caps, (2, 2, 2), scores=[[-9.0, -3.0, 0.0], [-2.0, -1.0, 0.0], [-5.0, -4.0, 0.0]]) == (
        0,
        2,
        2,
    )


def test_a_question_about_a_profile_is_known_by_it():
    keys = [question_key(Table("switch_effects", 8, (1.0,), profile)) for profile in ((0, 1), (1, 0))]
    assert keys[0] != keys[1] and keys[0]["profile"] == encode((0, 1))
    assert "profile" not in question_key(Table("cosine", 8))


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
def test_settings_that_cannot_work_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        guided(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": (0,) * 3}, "search.start is not of this model and database: the profile has 3 entries"),
        ({"start": (9,) * 4}, "search.start .* has levels 0 to 2, not 9"),
        ({"others": [(1,) * 4, (1,) * 5, (1,) * 4]}, "search.others .* 5 entries"),
        ({"start": (0,) * 4, "rounds": 0}, "search.start exceeds the budget, .* set search.rounds to 1"),
    ],
)
def test_given_profiles_that_cannot_be_used_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        next(guided(**changes).run(bit_space([8] * 4), BITS3, Random(0)))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    save_tiny("llama", folder)
    return folder


def job(folder, outputs, model, **changes) -> Job:
    defaults = dict(
        model=ModelSource(name="tiny", path=str(model), dtype="float32", device="cpu", max_perplexity=1e6),
        data=Data(
            source="pydoc", window=32, calibration_tokens=256, search_tokens=256, validation_tokens=64, test_tokens=64
        ),
        compress=GPTQ(bits=[2, 3, 4], group_size=32),
        space=SpaceSettings(),
        budget=Budget(metric="bits", target=3),
        search=guided(generations=2, refinements=1, refinement=REFINEMENT),
        evaluator=EvaluatorSettings(),
        eval=Eval(),
        tracker=Tracker(),
        stages=("database", "search"),
        seed=0,
        folder=folder,
        outputs=outputs,
    )
    return Job(**{**defaults, **changes})


@pytest.mark.parametrize(
    ("compress", "budget"),
    [
        (GPTQ(bits=[2, 3, 4], group_size=32), Budget(metric="bits", target=2.5)),
        (GPTQ(bits=[2, 3, 4], group_size=32), Budget(metric="size", target="125KB")),
        (SparseGPT(base=0.5, num_levels=2), HALF),
        (Drop(), Budget(metric="drop", target=1 / 3)),
        (Drop(granularity="block"), Budget(metric="drop", target=1 / 3)),
    ],
    ids=lambda value: str(value)[:24],
)
def test_every_kind_of_budget_on_a_model(compress, budget, tmp_path, model):
    run_job(job(tmp_path / "run", tmp_path, model, compress=compress, budget=budget))
    achieved = json.loads((tmp_path / "run" / "profile.json").read_text())["achieved"]
    if budget.metric == "size":
        assert 124_000 < achieved <= 125_000
    else:
        assert achieved == pytest.approx(float(budget.target))


class Killed(BaseException):
    """Like a kill: nothing in the program catches it."""


def test_a_killed_search_resumes_to_the_same_bytes(tmp_path, model, monkeypatch):
    run_job(job(tmp_path / "whole", tmp_path / "outputs", model))
    left, evaluate = iter(range(2)), Evaluator.evaluate

    def dying(self, *args):
        if next(left, None) is None:
            raise Killed
        return evaluate(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "evaluate", dying)
        with pytest.raises(Killed):
            run_job(job(tmp_path / "killed", tmp_path / "outputs", model))
    assert len((tmp_path / "killed" / "search.jsonl").read_text().splitlines()) == 1 + 5  # killed after the third table
    run_job(job(tmp_path / "killed", tmp_path / "outputs", model))
    for name in ("search.jsonl", "profile.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@given(
    st.lists(st.sampled_from([8, 16, 24]), min_size=2, max_size=8),
    st.sampled_from([2.0, 2.5, 3.0]),
    st.integers(0, 99),
)
@settings(deadline=None, max_examples=25)
def test_profiles_of_other_budgets_are_brought_to_this_one_and_spend_it(sizes, target, seed):
    space, budget, rng = bit_space(sizes, (4, 3, 2)), Budget(metric="bits", target=target), Random(seed)
    profile = tuple(rng.randrange(3) for _ in sizes)
    scores = [[rng.uniform(-1, 1) for _ in unit.levels] for unit in space.units]
    found = fit_to_caps(space, budget.caps(space), profile, scores=scores)
    assert budget.holds(space, found)
    assert no_raise_fits(space, budget, found)


def test_what_is_brought_down_is_what_costs_least():
    space = bit_space([8] * 3, (4, 3, 2))
    scores = [[0.0, 1.0, 5.0], [0.0, 0.5, 5.0], [0.0, 3.0, 6.0]]
    assert fit_to_caps(space, Budget(metric="bits", target=3.67).caps(space), (0, 0, 0), scores=scores) == (0, 1, 0)


def test_others_join_the_last_comparison_of_the_rounds():
    space, weights = bit_space([8] * 8), [9.0, 8.0, 7.0, 6.0, 0.4, 0.3, 0.2, 0.1]
    one, other = (2, 2, 1, 2, 1, 0, 0, 0), (2, 1, 2, 1, 0, 2, 0, 0)
    method = guided(rounds=2, generations=0, others=[other]).warm_started([(0,) * 8, one], 1.0)  # the user's own stay
    _, questions = play(method, space, BITS3, linear_fitness(weights), table=flat_table(space, weights))
    first, last = (question.profiles for question in questions if isinstance(question, Batch))
    assert not {one, other} & set(first)
    assert {one, other} < set(last)
    assert (0,) * 8 not in last  # it is brought to the budget


@pytest.mark.parametrize(
    ("own", "fronts"), [(9, [2, 3, 4, 4, 5, 5]), (6, [1, 2, 2, 3, 3, 3]), (1, [1] * 6), (0, [0] * 6)]
)
def test_the_smaller_a_budget_of_many_the_more_follows_its_rounds(own, fronts):
    method = guided(generations=own, refinements=own, refinement=REFINEMENT)
    parts = [method.warm_started([], number / 6) for number in range(1, 7)]
    assert [part.generations for part in parts] == [part.refinements for part in parts] == fronts
