"""Marks of the cases of a test."""

from collections.abc import Collection, Iterable

import pytest


def slow_except(cases: Iterable[str], quick: Collection[str]) -> list:
    """The cases of a rule that is tested on many, as parameters; those that `quick` does not name are marked slow."""
    assert set(quick) <= set(cases)
    return [case if case in quick else pytest.param(case, marks=pytest.mark.slow) for case in cases]
