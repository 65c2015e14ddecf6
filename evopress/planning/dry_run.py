"""A search that is run on random answers, to see what it will ask: tokens, and the levels that it looks at."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from random import Random
from typing import TYPE_CHECKING

from evopress.data.windows import minibatch_shape
from evopress.evaluation import switch_effects
from evopress.search.base import Answer, Batch, Question, Table
from evopress.search.moves import evenly_spaced_profile
from evopress.space.units import Profile, Space

if TYPE_CHECKING:
    from evopress.job import Job


@dataclass(frozen=True)
class Rehearsal:
    """A search of random answers: its token equivalents, each (unit, level) it looked at, and what it returned.

    The tokens of the dense model are included, the levels of the evenly spaced profile too.
    """

    tokens: float
    seen: frozenset[tuple[int, int]]
    profile: Profile


def rehearsed(job: "Job", num_blocks: int, space: Space) -> Rehearsal:
    """Run the search of one budget on random answers."""
    rng = Random(job.seed)
    run = job.search.run(space, job.budget, Random(job.seed))
    windows = job.data.num_windows("search"), job.data.window
    total = 0.0
    seen = set(enumerate(evenly_spaced_profile(space, job.budget)))
    try:
        question = next(run)
        while True:
            total += prod(minibatch_shape(*windows, question.num_tokens, question.excerpt)) * _passes(
                question, num_blocks, space
            )
            seen |= _levels_of(question, space)
            question = run.send(_some_answer(question, num_blocks, space, rng))
    except StopIteration as stop:
        return Rehearsal(total, frozenset(seen | set(enumerate(stop.value))), stop.value)


def _levels_of(question: Question, space: Space) -> set[tuple[int, int]]:
    if isinstance(question, Batch):
        return {choice for profile in question.profiles for choice in enumerate(profile)}
    if question.kind == "switch_effects":
        return {(index, level) for index, unit in enumerate(space.units) for level in range(len(unit.levels))}
    return set()


def _passes(question: Question, num_blocks: int, space: Space) -> float:
    """Runs through the whole model that a question takes on its tokens."""
    if isinstance(question, Batch):
        return 1 + _distinct_blocks(question.profiles, num_blocks, space) / num_blocks
    if question.kind == "switch_effects":
        return switch_effects.token_equivalents(space, 1, int(question.arguments[0]))
    return 0.0 if question.kind == "layer_error" else 1.0


def _distinct_blocks(profiles: Sequence[Profile], num_blocks: int, space: Space) -> int:
    """Blocks to be run when profiles that agree up to a block share its run."""
    last = [unit.blocks[0] if unit.blocks else num_blocks for unit in space.units]
    ends = [max((index + 1 for index, at in enumerate(last) if at <= block), default=0) for block in range(num_blocks)]
    return sum(len({profile[:end] for profile in profiles}) for end in ends)


def _some_answer(question: Question, num_blocks: int, space: Space, rng: Random) -> Answer:
    if isinstance(question, Batch):
        return [rng.random() for _ in question.profiles]
    assert isinstance(question, Table)
    if question.kind == "switch_effects":
        return [[rng.random(), rng.random()] for unit in space.units for _ in unit.levels]
    if question.kind == "layer_error":
        return [[rng.random() for _ in unit.levels] for unit in space.units]
    num_rows = num_blocks if question.kind == "outliers" else len(space)
    return [[rng.random() for _ in question.arguments] for _ in range(num_rows)]
