"""A search that passes the checks at the start of a run never fails later, whatever its questions are answered."""

from random import Random

import pytest

from evopress.config import CONFIG_FOLDER, build_job
from evopress.search.base import Answer, Batch, Question, Search, SearchRun
from evopress.search.start_profiles import evenly_spaced_profile
from evopress.space.budget import Budget
from evopress.space.units import Profile, Space
from tests.configurations import composed
from tests.spaces import bit_space, block_space, drop_space, joint_space, sparse_space

OPTIONS = sorted(path.stem for path in CONFIG_FOLDER.glob("search/*.yaml") if path.stem != "profile")
SPACES: dict[str, tuple[Space, list[Budget]]] = {
    "bits": (bit_space([64, 64, 128, 32] * 3, trade="any"), [Budget(metric="bits", target=t) for t in (2, 2.3, 3, 4)]),
    "sparsity": (sparse_space(3), [Budget(metric="sparsity", target=t) for t in (0.35, 0.5, 0.65)]),
    "joint": (joint_space(3), [Budget(metric="bits", target=t) for t in (0.9, 1.5, 3)]),
    "halves": (drop_space(3), [Budget(metric="drop", target=t) for t in (0, 0.125, 0.34, 0.6)]),
    "blocks": (block_space("block"), [Budget(metric="drop", target=t) for t in (0.125, 0.25, 0.5)]),
    "kept": (block_space("subblock", keep_mlp=(0, 1)), [Budget(metric="drop", target=t) for t in (0.25, 0.5)]),
}


@pytest.fixture(scope="module")
def search_of(tmp_path_factory):
    """A function from an option of `search` to its search, with few generations."""

    def search(option: str) -> Search:
        few = ["search.generations=2"] if option.startswith(("evolution", "super")) else []
        return build_job(composed(f"search={option}", *few), tmp_path_factory.mktemp("run")).search

    return search


def answer_to(question: Question, space: Space, rng: Random) -> Answer:
    if isinstance(question, Batch):
        return [rng.random() for _ in question.profiles]
    if question.kind == "switch_effects":
        return [[rng.uniform(-1, 1), rng.random()] for unit in space.units for _ in unit.levels]
    if question.kind == "layer_error":
        return [[rng.random() for _ in unit.levels] for unit in space.units]
    return [[rng.random() for _ in question.arguments] for _ in space.units]


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("option", OPTIONS)
def test_a_search_that_asks_its_first_question_ends_within_the_budget(option, name, search_of):
    search, (space, budgets) = search_of(option), SPACES[name]
    for budget in budgets:
        try:
            evenly_spaced_profile(space, budget)
            search.num_questions(space, budget)
            run = search.run(space, budget, Random(0))
            question = next(run)
        except StopIteration as stop:
            assert budget.holds_in_sum(space, stop.value)
        except ValueError:
            continue  # refused at the start
        else:
            assert budget.holds_in_sum(space, end_of(run, question, space))


def end_of(run: SearchRun, question: Question, space: Space) -> Profile:
    """The profile that a search returns if its questions are answered with random numbers."""
    rng = Random(0)
    try:
        while True:
            question = run.send(answer_to(question, space, rng))
    except StopIteration as stop:
        return stop.value
