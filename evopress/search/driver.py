"""Runs a search: answers its questions and records every answer, so that a killed search can continue.

A search is resumed by replaying the recorded answers into a fresh generator with the same seed.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from random import Random

from tqdm import tqdm

from evopress.runtime import distributed, signals
from evopress.runtime.progress import progress
from evopress.search.base import Answer, Batch, Question, Search, Table
from evopress.search.log import SearchLog
from evopress.space.budget import Budget
from evopress.space.units import Profile, Space


@dataclass(frozen=True)
class SearchTask:
    """What to run: a search method on a space within a budget. All randomness comes from `seed`."""

    method: Search
    space: Space
    budget: Budget
    seed: int


@dataclass(frozen=True)
class AnsweredQuestion:
    """One question with its answer. `token_equivalents` is its cost in tokens through the whole model.

    A `replayed` answer was read from the search log and not computed in this run.
    """

    number: int
    question: Question
    answer: Answer
    token_equivalents: float
    seconds: float
    replayed: bool

    @property
    def best(self) -> float | None:
        """The lowest fitness of a batch; None for a table."""
        if not isinstance(self.question, Batch):
            return None
        return min((float(x) for x in self.answer if x == x), default=float("nan"))  # type: ignore[arg-type]


Answerer = Callable[[int, Question], tuple[Answer, float]]
"""Answers the n-th question; returns the answer and its cost in token equivalents."""


def run_search(
    task: SearchTask,
    answer: Answerer,
    *,
    log: SearchLog,
    on_answer: Callable[[AnsweredQuestion], None] = lambda answered: None,
) -> Profile:
    """Run a search to its end and return its profile. `on_answer` is called for every answer, replayed ones included.

    Raises ValueError if the log does not match the search, and RuntimeError if the returned profile exceeds the budget.
    """
    recorded = distributed.from_first(log.load)
    run = task.method.run(task.space, task.budget, Random(task.seed))
    num_questions = task.method.num_questions(task.space, task.budget)
    with progress(total=num_questions, desc="search", unit="question") as bar:
        try:
            question = next(run)
            for number in count():
                signals.raise_if_interrupted()
                answered = _answered(number, question, answer, log=log, recorded=recorded)
                on_answer(answered)
                _show(bar, answered)
                question = run.send(answered.answer)
        except StopIteration as stop:
            profile = stop.value
    return _checked(task, profile)


def minibatch_rng(seed: int, number: int) -> Random:
    """The generator that draws the minibatch of question `number`."""
    return Random(hashlib.sha256(f"{seed}/{number}".encode()).digest())


def _answered(
    number: int, question: Question, answer: Answerer, *, log: SearchLog, recorded: Sequence[dict]
) -> AnsweredQuestion:
    """Take the answer from the `recorded` lines if it is there; otherwise compute it and record it."""
    started = time.monotonic()
    replayed = number < len(recorded)
    if replayed:
        reply, cost = log.recorded_answer(recorded[number], question)
    else:
        reply, cost = answer(number, question)
        if distributed.is_first():
            log.append(question, reply, cost)
    return AnsweredQuestion(number, question, reply, cost, time.monotonic() - started, replayed)


def _checked(task: SearchTask, profile: Profile) -> Profile:
    """The profile with units inside dropped parents at level 0. Raises RuntimeError if it exceeds the budget."""
    task.space.check(profile)
    profile = task.space.normalized(profile)
    if not task.budget.holds_in_sum(task.space, profile):
        raise RuntimeError(f"{type(task.method).__name__} returned a profile that exceeds the budget")
    return profile


def _show(bar: tqdm, answered: AnsweredQuestion) -> None:
    question = answered.question
    tokens = question.num_tokens * (len(question.profiles) if isinstance(question, Batch) else 1)
    state = question.kind if isinstance(question, Table) else f"{question.label}, best {answered.best:.4f}"
    rate = "" if answered.replayed else f", {tokens / max(answered.seconds, 1e-9):.0f} tokens/s"
    bar.set_postfix_str(state + rate, refresh=False)
    bar.update()
