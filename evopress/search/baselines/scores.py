"""Depth pruning by scores: every unit gets a number once, and the lowest go.

The published scorers differ only in the number:

- `cosine` — ShortGPT (arXiv 2403.03853): how little a block turns the residual stream;
- `window` — the consecutive blocks that together turn it least (Gromov et al., arXiv 2403.17887);
- `relative_change` — weight subcloning (arXiv 2312.09299): ‖out − in‖ / ‖out‖ of a block;
- `perplexity` — Shortened Llama (arXiv 2402.02834): perplexity with the one block removed;
- `kl` — the same with the KL divergence from the dense model.
"""

from math import inf, isnan
from random import Random
from typing import Literal

from pydantic import Field

from evopress.runtime.config_class import config_class
from evopress.search.base import Batch, Search, SearchRun, Table, check_numbers, fitness_of, rows_of
from evopress.search.baselines.additive import knapsack
from evopress.space.budget import Budget, Cap
from evopress.space.units import Profile, Space

Blocks = list[tuple[int, ...]]
"""Units that stand or fall together: the attention and the MLP of a block."""


@config_class
class Scores(Search):
    """Drops the units with the lowest scores. With `whole_blocks`, attention and MLP of a block share one score.

    With `excerpt`, so many tokens of a text stand for a whole window. Raises ValueError for a space that is not one of
    drops.
    """

    score: Literal["cosine", "window", "relative_change", "perplexity", "kl"]
    tokens: int = Field(gt=0)
    whole_blocks: bool = True
    excerpt: int | None = Field(default=None, gt=0)

    def num_questions(self, space: Space, budget: Budget) -> int:
        return 1

    def run(self, space: Space, budget: Budget, rng: Random) -> SearchRun:
        if not space.is_depth_pruning:
            raise ValueError("this search scores what can be dropped: use it with compress=drop")
        together = blocks(space) if self.whole_blocks else [(index,) for index in range(len(space))]
        if self.score == "window":
            return (yield from self._window(space, budget, blocks(space)))
        if self.score == "perplexity" or self.score == "kl":
            profiles = tuple(drop(space, members) for members in together)
            batch = Batch(profiles, self.tokens, "single drops", fitness=self.score, excerpt=self.excerpt)
            scores = yield from fitness_of(batch)
        else:
            distance = float(len(together[0]))
            table = yield from rows_of(Table(self.score, self.tokens, (distance,), excerpt=self.excerpt))
            sign = -1.0 if self.score == "cosine" else 1.0
            scores = [sign * table[members[0]][0] for members in together]
        check_numbers(scores)
        errors = [[0.0, 0.0] for _ in space.units]
        for members, score in zip(together, scores, strict=True):
            for index in members:
                errors[index][1] = score
        return _lowest(space, budget.caps(space), errors)

    def _window(self, space: Space, budget: Budget, together: Blocks) -> SearchRun:
        length = -min(cap.slack(space, space.uniform(0)) for cap in budget.caps(space))
        if not length:
            return space.uniform(0)
        windows = [sum(together[first : first + length], ()) for first in range(len(together) - length + 1)]
        windows = [members for members in windows if all(len(space.units[i].levels) > 1 for i in members)]
        if not windows:
            raise ValueError(
                f"of no {length} consecutive blocks all may be dropped: lower budget.target, or keep less by "
                f"compress.keep_*"
            )
        distance = float(length * len(together[0]))
        table = yield from rows_of(Table("cosine", self.tokens, (distance,), excerpt=self.excerpt))
        scores = {members: table[members[0]][0] for members in windows}
        check_numbers(list(scores.values()))
        return drop(space, max(windows, key=lambda members: -inf if isnan(scores[members]) else scores[members]))


def blocks(space: Space) -> Blocks:
    """Indices of the units in each decoder block (or pair of blocks), in order."""
    found: dict[tuple[int, ...], list[int]] = {}
    for index, unit in enumerate(space.units):
        found.setdefault(unit.blocks, []).append(index)
    return [tuple(members) for members in found.values()]


def drop(space: Space, members: tuple[int, ...]) -> Profile:
    """Everything kept but `members`."""
    return tuple(int(index in members and len(unit.levels) > 1) for index, unit in enumerate(space.units))


def _lowest(space: Space, caps: tuple[Cap, ...], errors: list[list[float]]) -> Profile:
    """Drop exactly as much as the caps ask for, of what scores lowest."""
    lowest = min(min(row) for row in errors)
    shifted = [
        [0.0] if len(u.levels) == 1 else [0.0, row[1] - lowest + 1.0]
        for u, row in zip(space.units, errors, strict=True)
    ]
    return knapsack(space, caps, shifted)
