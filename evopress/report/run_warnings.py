"""Warnings for the reader of a report."""

import re
from collections.abc import Iterator
from math import isfinite
from pathlib import Path

from evopress.report.record import Run

MAX_GAP = 0.25
"""The report warns if the KL on test text exceeds the fitness on search tokens by more than this share."""


def unfinished_warnings(run: Run) -> Iterator[str]:
    """A line that names the unfinished stages, if there are any."""
    missing = [stage for stage, is_done in run.stages.items() if not is_done]
    if missing:
        yield f"This run has not finished: {', '.join(missing)} to do. Continue with: {run.resume_command}"


def logged_warnings(path: Path) -> Iterator[str]:
    """The warnings and errors in a `run.log`."""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if match := re.match(r"\[[^]]*\]\[[^]]*\]\[(WARNING|ERROR)\] - (.*)", line):
            yield match[2]


def result_warnings(run: Run) -> Iterator[str]:
    """Problems in the results themselves."""
    yield from _worse_than_uniform(run)
    if run.stopped == "finish":
        yield "The search was ended by finish=true before it was done. A longer search might find a better profile."
    if (gap := overfit_gap(run)) is not None and gap[2] > MAX_GAP:
        yield (
            f"KL on test text is {gap[2]:.0%} above that on search tokens ({gap[1]:.4g} against {gap[0]:.4g}): the "
            f"search may have overfitted, or the test text is harder. More data.search_tokens, or more tokens in the "
            f"last of search.stages, would help."
        )
    num_unusable = sum(not isfinite(value) for batch in run.batches for value in batch.fitness)
    if num_unusable:
        yield f"{num_unusable} of the profiles that the search tried had no finite fitness."


def _worse_than_uniform(run: Run) -> Iterator[str]:
    uniform, searched = run.candidates.get("uniform"), run.candidates.get("searched")
    if not uniform or not searched:
        return
    for name, kl in searched.kl.items():
        if kl > uniform.kl.get(name, float("inf")):
            yield (
                f"On {name} the searched profile is worse than the uniform one (KL {kl:.4g} against "
                f"{uniform.kl[name]:.4g}): give the search more generations, or more tokens in its last stage."
            )


def overfit_gap(run: Run) -> tuple[float, float, float] | None:
    """KL of the searched profile on search tokens, its KL on the first test set, and (second / first - 1).

    None unless the search minimised KL and both are known.
    """
    searched = run.candidates.get("searched")
    search_kl = run.search_fitness
    if run.fitness != "kl" or not searched or not searched.kl or not search_kl or not isfinite(search_kl):
        return None
    test_kl = next(iter(searched.kl.values()))
    return search_kl, test_kl, test_kl / search_kl - 1
