"""`search.jsonl`: every question of a search with its answer, so that a killed search can continue.

The first line is a header with everything that the answers depend on. Then there is one line per question. If the
search was stopped before its end, the last line says why. Every line has a checksum, and none has a timestamp, so a
resumed search writes the same bytes as an uninterrupted one.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from evopress.runtime.checksums import verify_checksum, with_checksum
from evopress.runtime.files import path_in_errors
from evopress.runtime.json_files import parse_json
from evopress.search.base import Answer, Question
from evopress.search.encoding import decode, question_key
from evopress.space.units import Profile

SHOWN_CHARACTERS = 20
"""How many characters of a differing value an error message shows. Hashes and lists can be long."""


@dataclass(frozen=True)
class SearchLog:
    """The file at `path`. `header` is everything that the answers depend on, as JSON."""

    path: Path
    header: Mapping[str, object]

    def load(self) -> list[dict]:
        """The recorded lines, one per answer.

        Writes the header into a new file, and removes a last line that a kill left incomplete. Raises ValueError if the
        file is damaged or was written with other settings.
        """
        lines = self.path.read_bytes().split(b"\n") if self.path.exists() else [b""]
        incomplete_line = lines.pop()
        if not lines:
            self._write_header()
            return []
        if incomplete_line:
            os.truncate(self.path, sum(len(line) + 1 for line in lines))
        try:
            first, *recorded = (verify_checksum(parse_json(line)) for line in lines)
            recorded_header = first.get("header")
            if not isinstance(recorded_header, dict):
                raise ValueError("its first line has no header")
        except ValueError as error:
            raise ValueError(f"{self.path} is damaged ({error}): delete it to search again from the start") from error
        self._check_header(recorded_header)
        return recorded

    def append(self, question: Question, answer: Answer, token_equivalents: float) -> None:
        """Record the answer to a question."""
        line = {**question_key(question), "answer": answer, "token_equivalents": token_equivalents}
        with path_in_errors(self.path), open(self.path, "a") as file:
            file.write(json.dumps(with_checksum(line)) + "\n")

    def append_stop(self, reason: str) -> None:
        """Record that the search is stopped before its end."""
        with path_in_errors(self.path), open(self.path, "a") as file:
            file.write(json.dumps(with_checksum({"ask": "stop", "reason": reason, "token_equivalents": 0.0})) + "\n")

    def recorded_answer(self, line: dict, question: Question) -> tuple[Answer, float]:
        """The answer on a recorded line and its token equivalents. Raises ValueError if the questions differ."""
        key = question_key(question)
        if {name: line.get(name) for name in key} != key:
            raise ValueError(
                f"{self.path} records a question that this search does not ask "
                f"({line.get('label') or line.get('ask')}), so it was written by another version or with other "
                f"settings: delete it to search again"
            )
        return line["answer"], line["token_equivalents"]

    def _write_header(self) -> None:
        line = json.dumps(with_checksum({"header": self.header}), sort_keys=True)
        with path_in_errors(self.path):
            self.path.write_text(line + "\n")

    def _check_header(self, recorded: dict) -> None:
        expected = json.loads(json.dumps(self.header))
        if differing := sorted(_differences(recorded, expected)):
            raise ValueError(
                f"{self.path} was written with other settings ({', '.join(differing)}): "
                f"resume with the same settings or start a new run"
            )


def _differences(recorded: Mapping, expected: Mapping, prefix: str = "") -> list[str]:
    """The dotted keys whose values differ, each with its value in the file and its value now."""
    differing = []
    for key in {**recorded, **expected}:
        before, now = recorded.get(key), expected.get(key)
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            differing += _differences(before, now, f"{prefix}{key}.")
        elif before != now:
            differing.append(f"{prefix}{key}: {_shown(before)} in the file, {_shown(now)} now")
    return differing


def _shown(value: object) -> str:
    """The value as JSON, cut to `SHOWN_CHARACTERS`."""
    text = json.dumps(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"


def read_evaluations(path: Path) -> list[list[tuple[Profile, float]]]:
    """All profiles and fitness values in the log of a finished search, batch by batch, fittest first; NaN last."""
    lines = [verify_checksum(parse_json(line)) for line in path.read_bytes().splitlines()[1:]]
    batches = [line for line in lines if line["ask"] == "batch"]
    pairs = [list(zip(map(decode, batch["profiles"]), batch["answer"], strict=True)) for batch in batches]
    return [sorted(batch, key=lambda pair: (pair[1] != pair[1], pair[1])) for batch in pairs]
