"""Compares the fast versions with the plain ones of the tests, run alternately: solves, evaluations, a whole search."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from statistics import median

import torch
from torch import Tensor

from evopress.compressors.base import LayerGroup
from evopress.compressors.gptq import GPTQ
from evopress.compressors.sparsegpt import SparseGPT
from evopress.data.windows import minibatch
from evopress.evaluation.context import EvaluationContext
from evopress.evaluation.evaluator import Evaluator
from evopress.evaluation.oracle import Oracle
from evopress.models.language_model import LanguageModel
from evopress.search.base import Answer, Batch, Question
from evopress.search.driver import AnsweredQuestion, Answerer, SearchTask, minibatch_rng, run_search
from evopress.search.evolution import Evolution
from evopress.search.log import SearchLog
from evopress.search.mutation import mutants
from evopress.search.start_profiles import random_profile, uniform_profile
from evopress.space.budget import Budget
from evopress.space.units import Profile, Space
from experiments.speed.timing import RUNS, ratio
from tests import plain

log = logging.getLogger("bench")

SEARCH = Evolution(
    generations=2,
    offspring=16,
    stages=[{"survivors": 4, "tokens": 512}, {"survivors": 1, "tokens": 2048}],  # type: ignore[list-item]
    initial_candidates=32,
    initial_tokens=512,
)


def group_of(lm: LanguageModel, index: int) -> LayerGroup:
    """A layer group of the first block with a random Hessian."""
    names = tuple(lm.layer_name(0, local) for local in lm.layer_groups(0)[index])
    weights = tuple(lm.linear(0, local).weight.float() for local in lm.layer_groups(0)[index])
    cols, generator = weights[0].shape[1], torch.Generator().manual_seed(0)
    X = torch.randn(4096, cols, generator=generator) @ torch.randn(cols, cols, generator=generator)
    return LayerGroup(names, weights, 2 / len(X) * X.t() @ X)


def gptq_solve(compressor: GPTQ, group: LayerGroup, group_size: int) -> dict[str, float]:
    """All widths and layers of a group at once, compared with one at a time, row-major."""
    assert group.hessian is not None
    H = group.hessian

    def one_at_a_time() -> None:
        for bits in compressor.bits:
            for weight in group.weights:
                plain.gptq(weight, H, bits=bits, group_size=group_size)

    return ratio(one_at_a_time, lambda: compressor.compress(group))


def sparsegpt_solve(compressor: SparseGPT, group: LayerGroup) -> dict[str, float]:
    """The same for levels of sparsity."""
    assert group.hessian is not None
    H = group.hessian

    def one_at_a_time() -> None:
        for shape, weight in zip(group.shapes, group.weights, strict=True):
            for zeros in compressor.num_zeros(shape):
                plain.sparsegpt(weight, H, zeros=zeros, block_size=128, value_dtype=torch.bfloat16)

    return ratio(one_at_a_time, lambda: compressor.compress(group))


def offspring(space: Space, budget: Budget, count: int) -> list[Profile]:
    """Mutants of the uniform profile, or of a random one where there is none."""
    parent = uniform_profile(space, budget) or random_profile(space, budget, Random(0))
    return mutants(space, budget.caps(space), [parent], count=count, rng=Random(0), max_switches=3)


def evaluation(evaluator: Evaluator, profiles: list[Profile], tokens: Tensor) -> dict[str, object]:
    """The block-major evaluator compared with the plain one: times, and the largest difference of their results."""

    def slow() -> list[float]:
        return plain.one_at_a_time(evaluator.lm, evaluator.space, evaluator.weights, profiles, tokens)

    def fast() -> list[float]:
        evaluator.forget_teacher()
        return evaluator.evaluate(profiles, tokens)

    difference = largest_difference(fast(), slow())
    times = ratio(slow, fast)
    return {**times, "profiles": len(profiles), "tokens": tokens.numel(), "largest_relative_difference": difference}


def largest_difference(measured: Sequence[float], expected: Sequence[float]) -> float:
    return max(abs(a - b) / max(abs(b), 1e-9) for a, b in zip(measured, expected, strict=True))


def whole_search(context: EvaluationContext, budget: Budget, folder: Path) -> dict[str, object]:
    """The same search with the evaluator and with the plain evaluation, several times alternately.

    Tokens are counted as the authors do: each candidate's own, the dense model's not.
    """

    def plain_answer(number: int, question: Question) -> tuple[Answer, float]:
        assert isinstance(question, Batch)
        tokens = minibatch(context.splits.search, question.num_tokens, minibatch_rng(0, number))
        fitness = plain.one_at_a_time(context.lm, context.space, context.evaluator.weights, question.profiles, tokens)
        return fitness, float(tokens.numel())

    runs = []
    for number in range(RUNS):
        context.evaluator.forget_teacher()
        fast_run = _run(context, budget, Oracle(context, 0), folder / f"fast-{number}.jsonl")
        runs.append((fast_run, _run(context, budget, plain_answer, folder / f"plain-{number}.jsonl")))
    fast, slow = runs[0]
    fast_seconds, plain_seconds = (median(run.seconds for run in side) for side in zip(*runs, strict=True))
    pairs = [pair for fast, slow in runs for pair in zip(fast.answers, slow.answers, strict=True)]
    return {
        "tokens": fast.tokens,
        "seconds": fast_seconds,
        "plain_seconds": plain_seconds,
        "ratio": median(slow.seconds / fast.seconds for fast, slow in runs),
        "tokens_per_second": fast.tokens / fast_seconds,
        "plain_tokens_per_second": slow.tokens / plain_seconds,
        "largest_relative_difference": max(largest_difference(a, b) for a, b in pairs),
        "same_ranking": all(_ranking(a) == _ranking(b) for a, b in pairs),
        "same_profile": all(fast.profile == slow.profile for fast, slow in runs),
    }


class _Run:
    """A search and the answers it received."""

    def __init__(self) -> None:
        self.answers: list[list[float]] = []
        self.tokens = 0
        self.seconds = 0.0
        self.profile: Profile = ()

    def watch(self, answered: AnsweredQuestion) -> None:
        assert isinstance(answered.question, Batch)
        self.answers.append([float(value) for value in answered.answer])  # type: ignore[arg-type]
        self.tokens += len(answered.question.profiles) * answered.question.num_tokens


def _run(context: EvaluationContext, budget: Budget, answer: Answerer, path: Path) -> _Run:
    run, started = _Run(), time.perf_counter()
    task = SearchTask(SEARCH, context.space, budget, seed=0)
    run.profile = run_search(task, answer, log=SearchLog(path, {}), on_answer=run.watch)
    run.seconds = time.perf_counter() - started
    return run


def _ranking(values: Sequence[float]) -> list[int]:
    return sorted(range(len(values)), key=values.__getitem__)
