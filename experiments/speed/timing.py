"""Measures time: medians, alternating pairs, rows of the table, and time spent inside functions of a larger job."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import wraps
from statistics import median
from typing import Any
from unittest.mock import patch

import torch

RUNS = 3


@dataclass(frozen=True)
class Phase:
    """One row of the table: seconds, work in GFLOP or GB, and the limit of the machine for its rate."""

    name: str
    seconds: float
    work: float
    unit: str
    ceiling: float

    @property
    def rate(self) -> float:
        return self.work / self.seconds

    def as_dict(self) -> dict[str, object]:
        return {**asdict(self), "rate": self.rate, "share_of_ceiling": self.rate / self.ceiling}


def seconds(action: Callable[[], object], runs: int = RUNS) -> float:
    """Median of `runs`, after one that does not count."""
    action()
    return median(once(action) for _ in range(runs))


def once(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def ratio(plain: Callable[[], object], fast: Callable[[], object]) -> dict[str, float]:
    """How many times as fast `fast` is; the two run alternately."""
    pairs = [(once(plain), once(fast)) for _ in range(RUNS)]
    return {
        "plain_seconds": median(slow for slow, _ in pairs),
        "seconds": median(fast_seconds for _, fast_seconds in pairs),
        "ratio": median(slow / fast_seconds for slow, fast_seconds in pairs),
    }


def ceilings() -> dict[str, float]:
    """GFLOP/s of a large matrix product in float32 and bfloat16, and GB/s of a copy (bytes read and written)."""
    limits = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.randn(1536, 1536).to(dtype)
        limits[str(dtype).removeprefix("torch.")] = 2 * 1536**3 / seconds(lambda a=a: a @ a, 9) / 1e9  # type: ignore[misc]
    source, target = torch.zeros(2**27, dtype=torch.uint8), torch.zeros(2**27, dtype=torch.uint8)
    limits["copy"] = 2 * source.nbytes / seconds(lambda: target.copy_(source), 9) / 1e9
    return limits


@contextmanager
def time_inside(**methods: tuple[type, str]) -> Iterator[dict[str, float]]:
    """While open, adds up the seconds spent in each method under its name. Methods may call each other."""
    spent: dict[str, float] = defaultdict(float)

    def timed(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                spent[name] += time.perf_counter() - started

        return call

    patches = [patch.object(owner, name, timed(key, getattr(owner, name))) for key, (owner, name) in methods.items()]
    for patcher in patches:
        patcher.start()
    try:
        yield spent
    finally:
        for patcher in patches:
            patcher.stop()
