"""A search that is stopped between two questions gives its best profile so far, and stops there again when resumed."""

from itertools import count
from math import nan
from random import Random

import pytest

from evopress.search.base import Batch, Table
from evopress.search.baselines.additive import Additive
from evopress.search.driver import SearchTask, run_search
from evopress.search.early_stop import BestSoFar
from evopress.search.log import SearchLog
from evopress.search.start_profiles import evenly_spaced_profile
from evopress.search.swaps import Swaps
from evopress.space.budget import Budget
from tests.search.searches import REFINEMENT, evolution, guided
from tests.search.test_any_answers import answer_to
from tests.spaces import BITS3, bit_space, drop_space, joint_space, linear_fitness

SPACE = bit_space([8] * 8)
COST = 1.5


class KilledError(Exception):
    pass


def drive(path, stop_rule=lambda spent: None, *, method=None, space=SPACE, budget=BITS3, kill_at=None):
    """The profile of a search with random answers, the questions that it asked, and its log."""
    asked = []

    def answer(number, question):
        if number == kill_at:
            raise KilledError
        asked.append(question)
        return answer_to(question, space, Random(number)), COST

    task = SearchTask(method or evolution(), space, budget, seed=0)
    return run_search(task, answer, log=SearchLog(path, {}), stop_rule=stop_rule), asked


@pytest.mark.parametrize("questions", [1, 2, 5, 10, 33])
def test_a_search_stops_when_its_effort_is_spent_and_a_killed_one_ends_in_the_same_bytes(questions, tmp_path):
    def is_spent(spent):
        return "effort" if spent >= questions * COST else None

    profile, asked = drive(tmp_path / "whole.jsonl", is_spent)
    assert len(asked) == questions
    with pytest.raises(KilledError):
        drive(tmp_path / "killed.jsonl", is_spent, kill_at=questions // 2)
    assert drive(tmp_path / "killed.jsonl", is_spent)[0] == profile
    assert (tmp_path / "killed.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert '"reason": "effort"' in (tmp_path / "whole.jsonl").read_text().splitlines()[-1]


def test_a_stop_that_is_recorded_happens_again_whatever_the_clock_says(tmp_path):
    calls = count()
    profile, asked = drive(tmp_path / "log.jsonl", lambda spent: "effort" if next(calls) == 7 else None)
    content = (tmp_path / "log.jsonl").read_bytes()
    assert drive(tmp_path / "log.jsonl") == (profile, [])
    assert (tmp_path / "log.jsonl").read_bytes() == content
    assert len(asked) == 7


SEARCHES = {
    "evolution": (evolution(), SPACE, BITS3),
    "guided": (guided(refinements=2, refinement=REFINEMENT), SPACE, Budget(metric="bits", target=2.5)),
    "joint": (guided(refinements=2, refinement=REFINEMENT), joint_space(3), Budget(metric="bits", target=2.2)),
    "swaps": (Swaps(rounds=3, effect_tokens=8, line_tokens=8), drop_space(4), Budget(metric="drop", target=0.25)),
    "additive": (Additive(errors="measured", tokens=8), SPACE, BITS3),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_that_stops_at_any_question_returns_the_fittest_of_its_last_decisive_comparison(name, tmp_path):
    method, space, budget = SEARCHES[name]
    settings = {"method": method, "space": space, "budget": budget}
    _, asked = drive(tmp_path / "whole.jsonl", **settings)
    for stop in range(1, len(asked)):
        expected = evenly_spaced_profile(space, budget)
        for number, question in enumerate(asked[:stop]):
            if isinstance(question, Batch) and question.decisive:
                pairs = zip(answer_to(question, space, Random(number)), question.profiles, strict=True)
                within = [(value, p) for value, p in pairs if budget.holds_in_sum(space, space.normalized(p))]
                expected = min(within)[1] if within else expected
        calls = count()
        rule = lambda spent, stop=stop, calls=calls: "effort" if next(calls) == stop else None  # noqa: E731
        profile, _ = drive(tmp_path / f"{stop}.jsonl", rule, **settings)
        assert profile == space.normalized(expected)
        assert budget.holds_in_sum(space, profile)


@pytest.mark.parametrize("method", [evolution(), guided(generations=4)], ids=["evolution", "guided"])
def test_the_best_so_far_never_gets_worse_where_fitness_has_no_noise(method, tmp_path):
    fitness = linear_fitness([float(i * 7 % 11) for i in range(len(SPACE))])
    best, seen = BestSoFar(SPACE, BITS3), []

    def answer(number, question):
        nonlocal best
        if isinstance(question, Table):
            return answer_to(question, SPACE, Random(number)), COST
        values = [fitness(profile) for profile in question.profiles]
        best = best.after(question, values)
        seen.append(fitness(best.profile) if best.profile else 99.0)
        return values, COST

    profile = run_search(SearchTask(method, SPACE, BITS3, 0), answer, log=SearchLog(tmp_path / "log.jsonl", {}))
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] == fitness(profile), "the last decisive comparison is the result"


def test_profiles_above_the_budget_or_without_a_fitness_are_never_the_best():
    above, within = SPACE.uniform(0), SPACE.uniform(1)
    best = BestSoFar(SPACE, BITS3).after(Batch((above, within, SPACE.uniform(2)), 8), [0.1, nan, 0.3])
    assert best.profile == SPACE.uniform(2)
    assert best.after(Batch((above,), 8), [0.0]) == best
    assert best.after(Batch((within,), 8, decisive=False), [0.0]) == best
    assert best.after(Table("cosine", 8), [[0.0]]) == best


def test_a_search_without_a_comparison_ends_with_the_uniform_profile_and_a_warning(tmp_path, caplog):
    profile, _ = drive(tmp_path / "log.jsonl", lambda spent: "effort")
    assert profile == evenly_spaced_profile(SPACE, BITS3)
    assert "the uniform profile is used; raise effort" in caplog.text


def test_a_search_is_finished_only_if_there_is_a_best_profile(tmp_path):
    with pytest.raises(KilledError):
        drive(tmp_path / "log.jsonl", kill_at=1)  # the first stage of the first generation decides nothing
    content = (tmp_path / "log.jsonl").read_bytes()
    with pytest.raises(ValueError, match="has not yet compared profiles within the budget: resume the run without"):
        drive(tmp_path / "log.jsonl", lambda spent: "finish")
    assert (tmp_path / "log.jsonl").read_bytes() == content
    with pytest.raises(KilledError):
        drive(tmp_path / "log.jsonl", kill_at=2)
    finished = drive(tmp_path / "log.jsonl", lambda spent: "finish")
    assert drive(tmp_path / "log.jsonl") == finished, "a later resume ends at the same question"
    assert finished[1] == []
