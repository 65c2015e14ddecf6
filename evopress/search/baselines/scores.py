"""Depth pruning by scores: every unit gets a score, and the units with the lowest scores are dropped.

The published methods differ in the score:

- `cosine` — ShortGPT (arXiv 2403.03853): how much a block changes the direction of the residual stream;
- `window` — Gromov et al. (arXiv 2403.17887): the same for consecutive blocks, which are dropped together;
- `relative_change` — weight subcloning (arXiv 2312.09299): ‖out − in‖ / ‖out‖ of a block;
- `perplexity` — Shortened Llama (arXiv 2402.02834): perplexity with only this block removed;
- `kl` — the KL divergence from the dense model with only this block removed.
"""

from collections.abc import Sequence
from math import inf, isnan
from random import Random
from typing import Literal

from pydantic import Field

from evopress.runtime.config_class import config_class
from evopress.search.base import Batch, Search, SearchRun, SearchStep, Table, fitness_of, rows_of
from evopress.search.knapsack import LevelScores, solve_knapsack
from evopress.search.selection import check_any_finite
from evopress.space.budget import Budget, Cap
from evopress.space.units import Profile, Space

Units = tuple[int, ...]
"""Indices of units that are kept or dropped together, such as the attention and the MLP of a block."""


@config_class
class Scores(Search):
    """Drops the units with the lowest scores. With `whole_blocks`, the attention and the MLP of a block share a score.

    With `excerpt`, only that many tokens of each window are used. Raises ValueError for a space in which layers have
    levels.
    """

    score: Literal["cosine", "window", "relative_change", "perplexity", "kl"]
    tokens: int = Field(gt=0)
    whole_blocks: bool = True
    excerpt: int | None = Field(default=None, gt=0)

    def num_questions(self, space: Space, budget: Budget) -> int:
        return 1

    def run(self, space: Space, budget: Budget, rng: Random) -> SearchRun:
        if not space.is_depth_pruning:
            raise ValueError("this search scores drops: use it with compress=drop")
        if self.score == "window":
            return (yield from self._best_window(space, budget))
        groups = units_by_block(space) if self.whole_blocks else [(index,) for index in range(len(space))]
        scores = yield from self._scores(space, groups)
        check_any_finite(scores)
        score_of = {unit: score for units, score in zip(groups, scores, strict=True) for unit in units}
        return _drop_lowest(space, budget.caps(space), [score_of[unit] for unit in range(len(space))])

    def _scores(self, space: Space, groups: Sequence[Units]) -> SearchStep[list[float]]:
        """One score for each group of units that are dropped together."""
        if self.score == "perplexity" or self.score == "kl":
            profiles = tuple(with_dropped(space, units) for units in groups)
            batch = Batch(
                profiles, self.tokens, "single drops", fitness=self.score, excerpt=self.excerpt, decisive=False
            )
            return (yield from fitness_of(batch))
        assert self.score != "window"
        distance = float(len(groups[0]))
        table = yield from rows_of(Table(self.score, self.tokens, (distance,), excerpt=self.excerpt))
        sign = -1.0 if self.score == "cosine" else 1.0
        return [sign * table[units[0]][0] for units in groups]

    def _best_window(self, space: Space, budget: Budget) -> SearchRun:
        if budget.metric != "drop":
            raise ValueError(
                f"this search drops a given number of blocks, but budget.metric is {budget.metric}: use a budget such "
                "as budget=drop25"
            )
        length = -min(cap.slack(space, space.uniform(0)) for cap in budget.caps(space))
        if not length:
            return space.uniform(0)
        by_block = units_by_block(space)
        windows = [sum(by_block[first : first + length], ()) for first in range(len(by_block) - length + 1)]
        windows = [units for units in windows if all(len(space.units[i].levels) > 1 for i in units)]
        if not windows:
            raise ValueError(
                f"there are no {length} consecutive blocks that may all be dropped: lower budget.target, or keep fewer "
                f"sub-blocks with compress.keep_*"
            )
        distance = float(length * len(by_block[0]))
        table = yield from rows_of(Table("cosine", self.tokens, (distance,), excerpt=self.excerpt))
        scores = {units: table[units[0]][0] for units in windows}
        check_any_finite(list(scores.values()))
        return with_dropped(space, max(windows, key=lambda units: -inf if isnan(scores[units]) else scores[units]))


def units_by_block(space: Space) -> list[Units]:
    """Indices of the units in each decoder block (or pair of blocks), in order."""
    by_blocks: dict[tuple[int, ...], list[int]] = {}
    for index, unit in enumerate(space.units):
        by_blocks.setdefault(unit.blocks, []).append(index)
    return [tuple(units) for units in by_blocks.values()]


def with_dropped(space: Space, units: Units) -> Profile:
    """The profile that drops those of these units that may be dropped, and keeps everything else."""
    return tuple(int(index in units and len(unit.levels) > 1) for index, unit in enumerate(space.units))


def _drop_lowest(space: Space, caps: Sequence[Cap], scores: Sequence[float]) -> Profile:
    """The profile with the lowest sum of scores that drops exactly as much as the caps require."""
    lowest = min(0.0, *scores)
    errors: LevelScores = [
        [0.0] if len(unit.levels) == 1 else [0.0, score - lowest + 1.0]
        for unit, score in zip(space.units, scores, strict=True)
    ]
    return solve_knapsack(space, caps, errors)
