"""The records of the studies, and how a printed number is compared with them."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev

from experiments.search import show
from tests.documents import ROOT

EXPERIMENTS = ROOT / "experiments"
NUMBER = r"−?\d+(?:[ ,]\d{3}(?!\d))*(?:\.\d+)?"


def record(name: str):
    return json.loads((EXPERIMENTS / name).read_text())


def number(text: str) -> float:
    """A printed number, with , or a space between thousands, and a real minus sign."""
    return float(re.sub("[ ,]", "", text).replace("−", "-"))


def is_rounded(printed: str, value: float) -> bool:
    """Whether a printed number is `value` rounded to its digits."""
    digits = re.sub(r"[^\d.]", "", printed)
    decimals = len(digits.partition(".")[2])
    return abs(number(printed) - value) <= 0.5000001 * 10**-decimals


def assert_printed(cell: str, *values: float) -> None:
    """The numbers of a cell, in order, are `values`; words and units in it do not matter."""
    printed = re.findall(NUMBER, cell)
    assert len(printed) == len(values), f"{cell!r} has other numbers than {values}"
    for text, value in zip(printed, values, strict=True):
        assert is_rounded(text, value), f"{cell!r} says {text} where the record has {value}"


def groups_of(task: str, search: str) -> list[list[dict]]:
    """Records of the search study in groups of three seeds, from cheap to expensive."""
    groups = show.grouped([run for run in record("search/results.json") if run["task"] == task])
    of_search = [runs for (_, name, _), runs in groups.items() if name == search]
    return sorted(of_search, key=lambda runs: mean_of(runs, "token_equivalents"))


def mean_of(runs: Iterable[Mapping], key: str) -> float:
    return fmean(float(run[key]) for run in runs)


def ended(task: str, options: Sequence[str]) -> list[dict]:
    """Runs of the search study that came to their end, with exactly these options of the search."""
    return [
        run
        for run in record("search/results.json")
        if run["task"] == task
        and run["stands_at"] == "end"
        and [word for word in run["overrides"] if word.startswith("search")] == list(options)
    ]


ALGORITHM_1 = (
    "search=evolution",
    "search.offspring=16",
    "search.stages=[{survivors:4,tokens:512},{survivors:1,tokens:2048}]",
    "search.generations=16",
    "search.initial_candidates=16",
    "search.initial_tokens=512",
)


def assert_mean_and_spread(cell: str, values: Sequence[float]) -> None:
    assert_printed(cell, fmean(values), stdev(values))
