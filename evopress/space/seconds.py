"""Converts times such as 20ms to seconds, and back."""

import re
from fractions import Fraction

_SUFFIXES = {"us": Fraction(1, 10**6), "ms": Fraction(1, 1000), "s": Fraction(1)}


def parse_seconds(time: float | str) -> Fraction:
    """The exact seconds of `20ms`, `1.5 s`, `800us` or a plain number. Raises ValueError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(us|ms|s|)\s*", str(time))
    if not match:
        raise ValueError(f"{time!r} is not a time: write for example 20ms, 1.5s or 800us")
    return Fraction(match[1]) * _SUFFIXES[match[2] or "s"]


def in_seconds(seconds: float) -> str:
    """A time for people: 0.0125 → 12.5 ms."""
    unit, factor = ("s", 1) if seconds >= 1 else ("ms", 10**3) if seconds >= 1e-3 else ("us", 10**6)
    return f"{seconds * factor:.4g} {unit}"
