"""Converts sizes such as 80MB to numbers of bytes."""

import re
from fractions import Fraction
from math import floor

_SUFFIXES = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_bytes(size: float | str) -> int:
    """The number of bytes of `80MB`, `1.5 GiB` or a plain number. Raises ValueError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z]*)\s*", str(size))
    suffix = (match[2] or "B").upper() if match else ""
    if not match or suffix not in _SUFFIXES:
        raise ValueError(f"{size!r} is not a size: write for example 80MB, 3.5GB or 75MiB")
    return floor(Fraction(match[1]) * _SUFFIXES[suffix])


def in_bytes(size: int) -> str:
    """A size for people: 24000000000 → 24.0 GB, 1500000 → 1.5 MB."""
    unit, divisor = next(((unit, _SUFFIXES[unit]) for unit in ("GB", "MB", "KB") if size >= _SUFFIXES[unit]), ("B", 1))
    return f"{size / divisor:.{min(1, divisor - 1)}f} {unit}"
