"""How long things take: medians, pairs in turns, rows of the table, and time spent inside functions of a larger job."""

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
    """One row of the table: seconds, work in GFLOP or GB, and its rate beside the ceiling that bounds it."""

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
    """How many times as fast `fast` is, both run in turns."""
    pairs = [(once(plain), once(fast)) for _ in range(RUNS)]
    return {
        "plain_seconds": median(slow for slow, _ in pairs),
        "seconds": median(quick for _, quick in pairs),
        "ratio": median(slow / quick for slow, quick in pairs),
    }


def ceilings() -> dict[str, float]:
    """GFLOP/s of a large matrix product in float32 and bfloat16, and GB/s of a copy (bytes read and written)."""
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.randn(1536, 1536).to(dtype)
        found[str(dtype).removeprefix("torch.")] = 2 * 1536**3 / seconds(lambda a=a: a @ a, 9) / 1e9  # type: ignore[misc]
    source, target = torch.zeros(2**27, dtype=torch.uint8), torch.zeros(2**27, dtype=torch.uint8)
    found["copy"] = 2 * source.nbytes / seconds(lambda: target.copy_(source), 9) / 1e9
    return found


@contextmanager
def time_inside(**methods: tuple[type, str]) -> Iterator[dict[str, float]]:
    """While open, seconds spent in each of the methods add up under its name; one may call another."""
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
    for each in patches:
        each.start()
    try:
        yield spent
    finally:
        for each in patches:
            each.stop()
