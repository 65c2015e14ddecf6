"""The batches of profiles that a search evaluated, read from `search.jsonl`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite, nan


@dataclass(frozen=True)
class EvaluatedBatch:
    """Profiles that were evaluated on one minibatch.

    `tokens_spent` is the cost of the search in token equivalents, up to and including this batch.
    """

    label: str
    num_tokens: int
    tokens_spent: float
    fitness: tuple[float, ...]
    profiles: tuple[str, ...]

    @property
    def best(self) -> float:
        """The lowest fitness; NaN if none is finite."""
        return min(filter(isfinite, self.fitness), default=nan)


def evaluated_batches(lines: Sequence[dict], fitness: str) -> Iterator[EvaluatedBatch]:
    """The batches in the parsed lines of a log that measured `fitness`, the fitness of the run.

    Raises KeyError, TypeError or ValueError if a line is malformed.
    """
    tokens_spent = 0.0
    for line in lines:
        tokens_spent += float(line["token_equivalents"])
        if line["ask"] == "batch" and line.get("fitness") in (None, fitness):
            values = tuple(map(float, line["answer"]))
            profiles = tuple(map(str, line["profiles"]))
            if len(values) != len(profiles):
                raise ValueError(f"{len(profiles)} profiles but {len(values)} fitness values")
            yield EvaluatedBatch(str(line.get("label", "")), int(line["tokens"]), tokens_spent, values, profiles)


def fitness_of(profile: str, batches: Sequence[EvaluatedBatch]) -> float | None:
    """The fitness of `profile` on the largest minibatch that it was evaluated on. The latest wins a tie."""
    measured = [
        (batch.num_tokens, number, value)
        for number, batch in enumerate(batches)
        for evaluated, value in zip(batch.profiles, batch.fitness, strict=True)
        if evaluated == profile
    ]
    return max(measured)[2] if measured else None
