"""Runs a search: answers its questions and records every answer, so that a killed search can continue.

A search is resumed by replaying the recorded answers into a fresh generator with the same seed. It can be stopped
between two questions. The log then says so, and every later replay ends at the same question.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import Literal

from tqdm import tqdm

from evopress.runtime import distributed, signals
from evopress.runtime.progress import progress
from evopress.search.base import Answer, Batch, Question, Search, Table
from evopress.search.early_stop import BestSoFar
from evopress.search.log import SearchLog
from evopress.search.start_profiles import evenly_spaced_profile
from evopress.space.budget import Budget
from evopress.space.units import Profile, Space

logger = logging.getLogger(__name__)


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

StopReason = Literal["effort", "finish"]
"""Why a search is stopped: its effort is spent, or the user asks for the best profile so far (`finish=true`)."""

StopRule = Callable[[float], StopReason | None]
"""Decides before a question whether to stop there. It is given the token equivalents that were spent so far."""


def run_search(
    task: SearchTask,
    answer: Answerer,
    *,
    log: SearchLog,
    on_answer: Callable[[AnsweredQuestion], None] = lambda answered: None,
    stop_rule: StopRule = lambda token_equivalents: None,
) -> Profile:
    """Run a search and return its profile. `on_answer` is called for every answer, replayed ones included.

    If the search is stopped, its best profile so far is returned. Raises ValueError if the log does not match the
    search, or if it is to finish but there is no best profile yet. Raises RuntimeError if the returned profile exceeds
    the budget.
    """
    recorded = distributed.from_first(log.load)
    run = task.method.run(task.space, task.budget, Random(task.seed))
    num_questions = task.method.num_questions(task.space, task.budget)
    best, spent = BestSoFar(task.space, task.budget), 0.0
    with progress(total=num_questions, desc="search", unit="question") as bar:
        try:
            question = next(run)
            for number in count():
                signals.raise_if_interrupted()
                if reason := _reason_to_stop(number, recorded, stop_rule, spent):
                    return _checked(task, _stopped(reason, number, best, log=log, recorded=recorded))
                answered = _answered(number, question, answer, log=log, recorded=recorded)
                on_answer(answered)
                _show(bar, answered)
                best, spent = best.after(question, answered.answer), spent + answered.token_equivalents
                question = run.send(answered.answer)
        except StopIteration as stop:
            profile = stop.value
    return _checked(task, profile)


def _reason_to_stop(number: int, recorded: Sequence[dict], stop_rule: StopRule, spent: float) -> StopReason | None:
    """Why the search stops before question `number`: as the log says, or, after its end, as the rule says."""
    if number < len(recorded):
        return recorded[number]["reason"] if recorded[number]["ask"] == "stop" else None
    return distributed.from_first(lambda: stop_rule(spent))


def _stopped(reason: StopReason, number: int, best: BestSoFar, *, log: SearchLog, recorded: Sequence[dict]) -> Profile:
    """The result of a search that stops before question `number`. Records the stop in the log."""
    if best.profile is None and reason == "finish":
        raise ValueError(
            "finish=true takes the best profile so far, but the search has not yet compared profiles within the "
            "budget: resume the run without finish=true"
        )
    if number >= len(recorded) and distributed.is_first():
        log.append_stop(reason)
    if best.profile is None:
        logger.warning(
            "the search stops because its effort is spent, before it has compared profiles within the budget: the "
            "uniform profile is used; raise effort"
        )
        return evenly_spaced_profile(best.space, best.budget)
    why = "its effort is spent" if reason == "effort" else "finish=true was set"
    logger.info("the search stops before question %d, because %s", number + 1, why)
    return best.profile


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
