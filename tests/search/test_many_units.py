"""With many units, a question takes few Python instructions per unit and profile. numpy does the rest.

At 18 000 units, 128 profiles are 2.3 million pairs of a unit and a profile. Thirty million instructions take about a
second. Instructions are counted, because seconds depend on the machine.
"""

from random import Random
from types import SimpleNamespace

import pytest

from evopress.evaluation.shared_prefixes import shared_runs
from evopress.search.base import Answer, Batch, Question
from evopress.search.encoding import decode, encode, question_key
from evopress.search.guided import Guided
from evopress.search.mutation import mutants
from evopress.search.selection import Stage
from evopress.search.start_profiles import random_profile, uniform_profile
from evopress.space.budget import Budget
from evopress.space.choices import Choices
from evopress.space.units import Level, Profile, Space, Unit
from tests.operations import count_bytecodes
from tests.spaces import BITS3

NUM_BLOCKS, NUM_PROFILES = 6, 32
FRACTION = Budget(metric="bits", target=2.7)


def space_of_experts(num_units: int) -> Space:
    """Units of one size with widths 4, 3 and 2."""
    levels = tuple(Level(label=f"{b}bit", value=b, cost=64 * b, size_bytes=8 * b) for b in (4, 3, 2))
    names = [(index * NUM_BLOCKS // num_units, f"layers.{index}") for index in range(num_units)]
    return Space(
        tuple(
            Unit(name=name, blocks=(block,), kind="expert", layers=(name,), num_weights=64, levels=levels)
            for block, name in names
        )
    )


def choices_of(space: Space) -> Choices:
    names = [f"layers.{block}" for block in range(NUM_BLOCKS)]
    return Choices(space, SimpleNamespace(num_blocks=NUM_BLOCKS, block_names=names))


def mutants_of_the_uniform_profile(space: Space) -> list[Profile]:
    parent = uniform_profile(space, BITS3)
    return mutants(space, BITS3.caps(space), [parent], count=NUM_PROFILES, rng=Random(0), max_switches=3)


@pytest.mark.parametrize("are_alike", [True, False], ids=["mutants", "random profiles"])
def test_a_question_takes_few_instructions_per_unit_and_profile(are_alike):
    """Everything that happens to the profiles of a question in Python, apart from the model."""
    space = space_of_experts(1200)
    choices = choices_of(space)
    rng = Random(0)
    profiles = mutants_of_the_uniform_profile(space) if are_alike else []
    profiles = profiles or [random_profile(space, FRACTION, rng) for _ in range(NUM_PROFILES)]

    def ask() -> list:
        question_key(Batch(tuple(profiles), 8))
        return list(shared_runs(choices.of_all(profiles), [0] * len(profiles)))

    runs, instructions = count_bytecodes(ask)
    assert len(runs) == NUM_BLOCKS and len(profiles) == NUM_PROFILES
    assert instructions < (12 if are_alike else 25) * len(space) * NUM_PROFILES


def test_a_mutant_takes_as_many_instructions_for_many_units_as_for_few():
    instructions = []
    for num_units in (300, 3000):
        space = space_of_experts(num_units)
        mutants_of_the_uniform_profile(space)  # makes the arrays of the space
        profiles, number = count_bytecodes(lambda space=space: mutants_of_the_uniform_profile(space))
        assert len(profiles) == NUM_PROFILES
        instructions.append(number - count_bytecodes(lambda space=space: uniform_profile(space, BITS3))[1])
    few, many = instructions
    assert many < 2 * few


def play(space: Space, search: Guided) -> list[Question]:
    """Run a search with random answers."""
    rng, run, questions = Random(0), search.run(space, FRACTION, Random(0)), []

    def answer(question: Question) -> Answer:
        if isinstance(question, Batch):
            return [rng.random() for _ in question.profiles]
        return [[rng.random() - 0.5, rng.random()] for unit in space.units for _ in unit.levels]

    question = next(run)
    try:
        while True:
            questions.append(question)
            question = run.send(answer(question))
    except StopIteration:
        return questions


def test_a_random_profile_takes_instructions_in_proportion_to_the_units():
    instructions = []
    for num_units in (300, 1200):
        space = space_of_experts(num_units)
        instructions.append(count_bytecodes(lambda space=space: random_profile(space, FRACTION, Random(0)))[1])
    few, many = instructions
    assert many < 5 * few


def test_a_mutant_that_a_table_proposes_takes_few_instructions_per_level():
    """The mean of the tables, and the scores, are computed once for all mutants of a generation."""
    space, counts = space_of_experts(200), []
    for offspring in (2, 6):
        stages = [Stage(survivors=1, tokens=8)]
        settings = {"table_tokens": 8, "dampings": [1], "line_tokens": 8, "stages": stages, "offspring": offspring}
        search = Guided(rounds=1, generations=1, **settings)
        questions, instructions = count_bytecodes(lambda search=search: play(space, search))
        assert len(questions[-1].profiles) == offspring + 1
        counts.append(instructions)
    few, many = counts
    num_levels = 3 * len(space)
    assert many - few < 4 * 320 * num_levels


def test_encoded_profiles_are_decoded_again():
    profile = tuple(range(62))
    assert decode(encode(profile)) == profile
    with pytest.raises(IndexError):
        encode((62,))
