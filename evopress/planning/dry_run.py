"""Runs a search on random fitness, without a model, to find out how many tokens and which levels it will use."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from random import Random

from evopress.data.windows import minibatch_shape
from evopress.evaluation.switch_effects import token_equivalents
from evopress.job import Job
from evopress.search.base import Answer, Batch, Question, Table
from evopress.search.start_profiles import evenly_spaced_profile
from evopress.space.units import Profile, Space
from evopress.targets import jobs_by_target

Levels = frozenset[tuple[int, int]]
"""Pairs of a unit's index and a level."""


@dataclass(frozen=True)
class DryRun:
    """A search on random fitness: its cost, every level of a unit that it would decode, and the profile it returned.

    The cost includes the passes of the dense model, the levels include those of the evenly spaced profile.
    """

    token_equivalents: float
    levels: Levels
    profile: Profile


def dry_run_targets(job: Job, num_blocks: int, space: Space) -> list[DryRun]:
    """A dry run of the search for every target of the job, or for its one budget."""
    dry_runs: list[DryRun] = []
    for target_job in jobs_by_target(job, space, lambda: [dry_run.profile for dry_run in dry_runs[-1:]]):
        dry_runs.append(dry_run_search(target_job, num_blocks, space))
    return dry_runs or [dry_run_search(job, num_blocks, space)]


def dry_run_search(job: Job, num_blocks: int, space: Space) -> DryRun:
    """Run the search of one budget and answer every question with random numbers."""
    rng = Random(job.seed)
    search_run = job.search.run(space, job.budget, Random(job.seed))
    pool = job.data.num_windows("search"), job.data.window
    cost = 0.0
    levels = set(enumerate(evenly_spaced_profile(space, job.budget)))
    try:
        question = next(search_run)
        while True:
            num_tokens = prod(minibatch_shape(*pool, question.num_tokens, question.excerpt))
            cost += num_tokens * _passes(question, num_blocks, space)
            levels |= _levels_of(question, space)
            question = search_run.send(_random_answer(question, num_blocks, space, rng))
    except StopIteration as stop:
        profile: Profile = stop.value
    return DryRun(cost, frozenset(levels | set(enumerate(profile))), profile)


def _levels_of(question: Question, space: Space) -> set[tuple[int, int]]:
    """The levels that answering the question decodes."""
    if isinstance(question, Batch):
        return {choice for profile in question.profiles for choice in enumerate(profile)}
    if question.kind == "switch_effects":
        return {(index, level) for index, unit in enumerate(space.units) for level in range(len(unit.levels))}
    return set()


def _passes(question: Question, num_blocks: int, space: Space) -> float:
    """Forward passes through the whole model that answering the question costs per token."""
    if isinstance(question, Batch):
        return 1 + _num_block_runs(question.profiles, num_blocks, space) / num_blocks
    if question.kind == "switch_effects":
        return token_equivalents(space, 1, int(question.arguments[0]))
    return 0.0 if question.kind == "layer_error" else 1.0


def _num_block_runs(profiles: Sequence[Profile], num_blocks: int, space: Space) -> int:
    """How often a block runs when profiles that agree up to and including a block share that run."""
    block_of_unit = [unit.blocks[0] if unit.blocks else num_blocks for unit in space.units]
    prefix_lengths = [
        max((index + 1 for index, block_of in enumerate(block_of_unit) if block_of <= block), default=0)
        for block in range(num_blocks)
    ]
    return sum(len({profile[:length] for profile in profiles}) for length in prefix_lengths)


def _random_answer(question: Question, num_blocks: int, space: Space, rng: Random) -> Answer:
    """Random numbers in the shape of the answer."""
    if isinstance(question, Batch):
        return [rng.random() for _ in question.profiles]
    assert isinstance(question, Table)
    if question.kind == "switch_effects":
        return [[rng.random(), rng.random()] for unit in space.units for _ in unit.levels]
    if question.kind == "layer_error":
        return [[rng.random() for _ in unit.levels] for unit in space.units]
    num_rows = num_blocks if question.kind == "outliers" else len(space)
    return [[rng.random() for _ in question.arguments] for _ in range(num_rows)]
