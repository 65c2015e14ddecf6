"""Finds the block runs that several profiles can share, because they agree on all blocks up to that one."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from evopress.models.subblocks import SUBBLOCKS
from evopress.space.choices import BlockChoice


class BlockRun(NamedTuple):
    """One run of a block: its levels and dropped sub-blocks, and the index of its input state."""

    choice: BlockChoice
    state: int

    @property
    def is_computed(self) -> bool:
        """Whether any sub-block is left to run."""
        return len(self.choice.dropped) < len(SUBBLOCKS)


def shared_runs(
    choices: Sequence[list[BlockChoice]], start_states: Sequence[int]
) -> Iterator[tuple[list[BlockRun], list[int]]]:
    """For each block, yield its distinct runs, sorted by choice, and the index of each profile's run among them.

    Each profile is given by its choices for all blocks, and by the index of its input state for the first block.
    """
    states = list(start_states)
    for block in range(max(map(len, choices), default=0)):
        runs_of_profiles = [BlockRun(choice[block], state) for choice, state in zip(choices, states, strict=True)]
        distinct = sorted({run.choice for run in runs_of_profiles}, key=lambda c: (c.levels, sorted(c.dropped)))
        place_of = {choice: place for place, choice in enumerate(distinct)}
        runs = sorted(set(runs_of_profiles), key=lambda run: (place_of[run.choice], run.state))
        index_of_run = {run: index for index, run in enumerate(runs)}
        states = [index_of_run[run] for run in runs_of_profiles]
        yield runs, states
