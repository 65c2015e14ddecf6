"""Fits the steps and offsets of the sub-blocks of K types, before they are rounded to multiples of d and dmin."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, reduce

import torch
from torch import Tensor

from evopress.weights.k_types import KType

RANGES = (
    *((beyond, beyond) for beyond in (-0.25, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)),
    *((0.0, 0.5), (0.5, 0.0), (0.0, 1.0), (1.0, 0.0), (0.5, 1.0), (1.0, 0.5)),
)
"""How far the smallest weight lies below the first code, and the largest above the last, in steps."""

SYMMETRIC_RANGES = (-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0)
"""In types without minima: how far the weight of the largest magnitude lies beyond the first or the last code."""


@dataclass(frozen=True)
class KBlocks:
    """Weights w (superblocks, sub-blocks, weights, rows), and the powers p of their inputs, which rows share.

    Steps a, offsets o and sums over the weights of a sub-block are (superblocks, sub-blocks, rows).
    """

    w: Tensor
    p: Tensor
    kind: KType

    @cached_property
    def pw(self) -> Tensor:
        return self.w * self.p

    @cached_property
    def sum_pw(self) -> Tensor:
        return self.pw.sum(2)

    @cached_property
    def sum_p(self) -> Tensor:
        return self.p.sum(2)

    def sums(self, a: Tensor, o: Tensor) -> Tensor:
        """Σ p·q², Σ p·q·w and Σ p·q of the nearest codes q, (3, superblocks, sub-blocks, rows)."""
        q = (self.w - o.unsqueeze(2)).mul_(inverse(a).unsqueeze(2)).round_().clamp_(self.kind.low, self.kind.high)
        sum_pqw = (self.pw * q).sum(2)
        pq = self.p * q
        return torch.stack([q.mul_(pq).sum(2), sum_pqw, pq.sum(2)])

    def error(self, a: Tensor, o: Tensor, *, sums: Tensor) -> Tensor:
        """Σ p·(w − a·q − o)² − Σ p·w² for codes with these sums."""
        sum_pqq, sum_pqw, sum_pq = sums
        return a * (a * sum_pqq + 2 * (o * sum_pq - sum_pqw)) + o * (o * self.sum_p - 2 * self.sum_pw)

    def solve(self, a: Tensor, *, sums: Tensor) -> tuple[Tensor, Tensor]:
        """The best step and offset for codes with these sums. The step is `a` where they do not determine it."""
        sum_pqq, sum_pqw, sum_pq = sums
        without_offset = torch.where(sum_pqq > 0, sum_pqw / sum_pqq, a)
        if not self.kind.has_minima:
            return without_offset, torch.zeros_like(a)
        determinant = sum_pqq * self.sum_p - sum_pq.square()
        is_solvable = determinant > 1e-6 * sum_pqq * self.sum_p
        step = torch.where(is_solvable, (sum_pqw * self.sum_p - sum_pq * self.sum_pw) / determinant, a)
        offset = self.best_offset(step, sums=sums)
        return torch.where(offset < 0, step, without_offset), offset

    def best_offset(self, a: Tensor, *, sums: Tensor) -> Tensor:
        """The best offset, at most 0, for the step `a` and codes with these sums; 0 in types without minima."""
        if not self.kind.has_minima:
            return torch.zeros_like(a)
        return ((self.sum_pw - a * sums[2]) / self.sum_p).clamp_(max=0)

    def solved(self, a: Tensor, o: Tensor) -> Tensor:
        """Round to the nearest codes for `a` and `o`, then solve. Returns error, step, offset and the three sums."""
        sums = self.sums(a, o)
        a, o = self.solve(a, sums=sums)
        return torch.stack([self.error(a, o, sums=sums), a, o, *sums])


def fit_sub_blocks(blocks: KBlocks) -> Tensor:
    """Error, step, offset and sums of every sub-block on its own, (6, superblocks, sub-blocks, rows)."""
    best = reduce(better, (blocks.solved(a, o) for a, o in _ranges(blocks.w, blocks.kind)))
    return better(best, blocks.solved(best[1], best[2]))


def _ranges(w: Tensor, kind: KType) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the steps and offsets to try."""
    if kind.has_minima:
        low, high = w.amin(2).clamp_(max=0), w.amax(2)
        for below, above in RANGES:
            step = (high - low) / (kind.high + below + above)
            yield step, (low + below * step).clamp_(max=0)
    else:
        furthest = w.gather(2, w.abs().argmax(2, keepdim=True)).squeeze(2)
        for beyond in SYMMETRIC_RANGES:
            yield furthest / (kind.low - beyond), torch.zeros_like(furthest)
            yield furthest / (kind.high + beyond), torch.zeros_like(furthest)


def inverse(steps: Tensor) -> Tensor:
    """1 / steps, and 0 where a step is 0: every weight then has the code 0."""
    return torch.where(steps == 0, 0.0, steps.reciprocal())


def better(best: Tensor, other: Tensor) -> Tensor:
    """Of two candidates, the one with the smaller error, element by element. Their first entry is the error."""
    return torch.where(other[0] < best[0], other, best)
