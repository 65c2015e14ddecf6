"""Runs a search: answers its questions, and writes every answer down so that a killed search can go on.

`search.jsonl` starts with a line that says what the answers depend on; then one line per question. To resume, the lines
are replayed into a fresh generator with the same seed; a question that differs from the one on record is an error, and
so is a line that does not match its checksum. No
clock enters the file, so a resumed search writes the same bytes as an uninterrupted one.
"""

import hashlib
import json
import logging
import os
import string
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tqdm import tqdm

from evopress.runtime import distributed, signals
from evopress.runtime.checksums import verify_checksum, with_checksum
from evopress.runtime.files import path_in_errors
from evopress.runtime.json_files import parse_json
from evopress.runtime.progress import progress
from evopress.search.base import Answer, Batch, Question, Search, Table
from evopress.space.budget import Budget
from evopress.space.units import Profile, Space

log = logging.getLogger(__name__)

_DIGITS = string.digits + string.ascii_letters


@dataclass(frozen=True)
class Answered:
    """One question with its answer. `token_equivalents` is what it cost in tokens through the whole model.

    `replayed` answers come from the record of a killed run and took no time in this one.
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


@dataclass(frozen=True)
class SearchLog:
    """Where the answers are kept. `header` is everything they depend on, as JSON."""

    path: Path
    header: Mapping[str, object]

    def replay(self) -> list[dict]:
        """The answers on record; writes the header into a new file and cuts off a line that a kill left torn.

        Raises ValueError when the file belongs to other settings or is damaged.
        """
        head = json.dumps(with_checksum({"header": self.header}), sort_keys=True)
        lines = self.path.read_bytes().split(b"\n") if self.path.exists() else [b""]
        torn = lines.pop()
        if not lines:
            with path_in_errors(self.path):
                self.path.write_text(head + "\n")
            return []
        if torn:
            os.truncate(self.path, sum(len(line) + 1 for line in lines))
        try:
            first, *answers = (verify_checksum(parse_json(line)) for line in lines)
            recorded = first.get("header")
            if not isinstance(recorded, dict):
                raise ValueError("its first line has no header")
        except ValueError as error:
            raise ValueError(f"{self.path} is damaged ({error}): delete it to search again from the start") from error
        differing = [
            key for key in {**recorded, **self.header} if recorded.get(key) != json.loads(head)["header"].get(key)
        ]
        if differing:
            raise ValueError(
                f"{self.path} was written with other settings ({', '.join(sorted(differing))}): "
                f"resume with the same ones or start a new run"
            )
        return answers


def search(
    method: Search,
    space: Space,
    budget: Budget,
    answer: Answerer,
    *,
    seed: int,
    record: SearchLog,
    watch: Callable[[Answered], None] = lambda answered: None,
) -> Profile:
    """Run `method` to its end and return its profile; `watch` is told every answer, replayed ones too."""
    known = distributed.from_first(record.replay)
    run = method.run(space, budget, Random(seed))
    number = 0
    bar = progress(total=method.num_questions(space, budget), desc="search", unit="question")
    with bar:
        try:
            question = next(run)
            while True:
                signals.raise_if_interrupted()
                started = time.monotonic()
                replayed = number < len(known)
                if replayed:
                    given, cost = _recorded(known[number], question, record.path)
                else:
                    given, cost = answer(number, question)
                    if distributed.is_first():
                        _append(record.path, question, given, cost)
                answered = Answered(number, question, given, cost, time.monotonic() - started, replayed)
                watch(answered)
                _show(bar, answered)
                number += 1
                question = run.send(given)
        except StopIteration as stop:
            profile = stop.value
    space.check(profile)
    profile = space.normalized(profile)
    if not budget.holds(space, profile):
        raise RuntimeError(f"{type(method).__name__} returned a profile that breaks the budget")
    return profile


def evaluated(path: Path) -> list[list[tuple[Profile, float]]]:
    """All profiles whose fitness a finished search asked for, batch by batch, fittest first; NaN last."""
    lines = [verify_checksum(parse_json(line)) for line in path.read_bytes().splitlines()[1:]]
    batches = [line for line in lines if line["ask"] == "batch"]
    pairs = [list(zip(map(decode, batch["profiles"]), batch["answer"], strict=True)) for batch in batches]
    return [sorted(batch, key=lambda pair: (pair[1] != pair[1], pair[1])) for batch in pairs]


def encode(profile: Profile) -> str:
    """One character per unit: 0-9, a-z, A-Z."""
    return "".join(_DIGITS[level] for level in profile)


def decode(text: str) -> Profile:
    return tuple(_DIGITS.index(character) for character in text)


def question_key(question: Question) -> dict[str, object]:
    """What identifies a question, as JSON."""
    excerpt = {} if question.excerpt is None else {"excerpt": question.excerpt}
    if isinstance(question, Batch):
        return excerpt | {
            "ask": "batch",
            "label": question.label,
            "fitness": question.fitness,
            "tokens": question.num_tokens,
            "profiles": [encode(profile) for profile in question.profiles],
        }
    key: dict[str, object] = excerpt | {
        "ask": question.kind,
        "tokens": question.num_tokens,
        "arguments": list(question.arguments),
    }
    return key if question.profile is None else {**key, "profile": encode(question.profile)}


def minibatch_rng(seed: int, number: int) -> Random:
    """The generator that draws the minibatch of question `number`."""
    return Random(hashlib.sha256(f"{seed}/{number}".encode()).digest())


def _append(path: Path, question: Question, given: Answer, cost: float) -> None:
    line = {**question_key(question), "answer": given, "token_equivalents": cost}
    with path_in_errors(path), open(path, "a") as file:
        file.write(json.dumps(with_checksum(line)) + "\n")


def _recorded(line: dict, question: Question, path: Path) -> tuple[Answer, float]:
    expected = question_key(question)
    if {key: line.get(key) for key in expected} != expected:
        raise ValueError(
            f"{path} records another question than this search asks ({line.get('label') or line.get('ask')}): "
            f"it was written by another version or other settings; delete it to search again"
        )
    return line["answer"], line["token_equivalents"]


def _show(bar: tqdm, answered: Answered) -> None:
    question = answered.question
    tokens = question.num_tokens * (len(question.profiles) if isinstance(question, Batch) else 1)
    what = question.kind if isinstance(question, Table) else f"{question.label}, best {answered.best:.4f}"
    rate = "" if answered.replayed else f", {tokens / max(answered.seconds, 1e-9):.0f} tokens/s"
    bar.set_postfix_str(what + rate, refresh=False)
    bar.update()
