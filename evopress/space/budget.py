"""Budgets: how much a compressed model may cost, in exact integers."""

import logging
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import cached_property
from math import ceil, floor
from typing import Literal

import numpy as np
from pydantic import field_validator

from evopress.runtime.config_class import config_class
from evopress.space.byte_sizes import parse_bytes
from evopress.space.units import Profile, Space

log = logging.getLogger(__name__)

Metric = Literal["bits", "sparsity", "drop", "size", "memory", "latency"]
"""Mean bits per weight, share of weights removed or sub-blocks dropped, bytes of the file or in memory, or seconds."""

FITTING: dict[Metric, tuple[Metric, ...]] = {
    "bits": ("bits", "size", "memory", "latency"),
    "sparsity": ("sparsity", "latency"),
    "drop": ("drop", "size", "memory", "latency"),
}
"""The metrics of budgets that fit a compressor, by the metric of its levels."""


@dataclass(frozen=True)
class Cap:
    """A limit: the costs of the units `members` (indices) may add up to at most `max_cost`."""

    members: tuple[int, ...]
    max_cost: int

    @cached_property
    def indices(self) -> np.ndarray:
        """The members as an array, int64."""
        return np.array(self.members, dtype=np.int64)

    @cached_property
    def member_set(self) -> frozenset[int]:
        return frozenset(self.members)

    def slack(self, space: Space, profile: Sequence[int] | np.ndarray) -> int:
        """The cost that is still available; negative if the profile exceeds the cap."""
        return self.max_cost - space.cost(profile, self.indices)


@config_class
class Budget:
    """A metric and its target: 3 (bits), 0.5 (sparsity), 0.25 (drop) or "80MB" (size).

    1 MB is 10^6 bytes, 1 MiB is 2^20.
    """

    metric: Metric
    target: float | str

    @field_validator("target", mode="before")
    @classmethod
    def _parse_number(cls, target: object) -> object:
        if not isinstance(target, str) or re.fullmatch(r"\s*\d[0-9.]*\s*[A-Za-z]+\s*", target):
            return target
        try:
            return float(target)
        except ValueError:
            raise ValueError("it must be a number, or a size such as 80MB") from None

    def __post_init__(self) -> None:
        if self.metric in ("memory", "latency"):
            raise ValueError(f"metric={self.metric} needs more settings: use {_EXAMPLES[self.metric]}")
        if self.counts_bytes:
            parse_bytes(self.target)
            return
        if isinstance(self.target, str):
            raise ValueError(
                f"{self.target!r} is a size but budget.metric is {self.metric}: use budget=size, or a plain number"
            )
        low, high = {"bits": (0, 32), "sparsity": (0, 1), "drop": (0, 1)}[self.metric]
        if not low <= self.target <= high:
            raise ValueError(f"{self.target:g} is outside {low} to {high} for budget.metric={self.metric}")

    @property
    def counts_bytes(self) -> bool:
        """Whether the cost of a level is a number of bytes."""
        return self.metric in ("size", "memory")

    @property
    def identity(self) -> dict[str, object]:
        """Everything that the costs and the caps depend on, besides the model."""
        return asdict(self)  # type: ignore[call-overload]

    @property
    def remedy(self) -> str:
        """What to change if no profile is within the budget."""
        keep = ", or keep fewer sub-blocks with compress.keep_*" if self.metric == "drop" else ""
        return f"{'lower' if self.metric in ('sparsity', 'drop') else 'raise'} budget.target{keep}"

    def check(self, counted: Metric, span: tuple[float, float], *, key: str = "compress") -> None:
        """Raises ValueError if no profile of a compressor can meet the budget. Warns if none can use all of it.

        `counted` is the metric of the compressor's costs. `span` is the smallest and the largest value that it reaches.
        `key` is the configuration key of its levels. The check needs no model, so mistakes are reported at start-up.
        """
        fitting = FITTING[counted]
        if self.metric not in fitting:
            examples = " or ".join(_EXAMPLES[metric] for metric in fitting)
            raise ValueError(f"budget.metric is {self.metric} but this compressor counts {counted}: use {examples}")
        if self.metric not in ("bits", "sparsity", "drop"):
            return
        target, (low, high) = float(self.target), span
        if self.metric == "bits" and target < low:
            raise ValueError(
                f"budget.target is {target:g} bits but the smallest level is {low:g}: "
                f"raise budget.target to at least {low:g} or add a smaller level to {key}"
            )
        if self.metric == "bits" and target > high:
            log.warning(
                "budget.target is %g bits but the largest level is %g, so the model gets %g bits everywhere: lower "
                "budget.target or add a larger level to %s",
                *(target, high, high, key),
            )
        if self.metric != "bits" and target > high:
            raise ValueError(
                f"budget.target is {target:g} but the strongest level removes {high:g}: "
                f"lower budget.target or change the levels of compress"
            )

    def caps(self, space: Space) -> tuple[Cap, ...]:
        """The caps on `space`, whose level costs must be in this budget's metric.

        The metric `drop` has one cap per trade group, so that as many attentions as MLPs are dropped. The number of
        dropped units is rounded to the nearest integer; halves are rounded up. Other metrics have one cap on all units.
        """
        all_units = tuple(range(len(space)))
        if self.metric == "size":
            return (Cap(all_units, parse_bytes(self.target) - space.fixed_bytes),)
        target = Fraction(repr(float(self.target)))
        if self.metric == "bits":
            return (Cap(all_units, floor(target * space.num_weights)),)
        if self.metric == "sparsity":
            return (Cap(all_units, sum(unit.num_weights - ceil(target * unit.num_weights) for unit in space.units)),)
        return tuple(_drop_cap(space, members, target) for members in space.trade_groups.values())

    def holds(self, space: Space, profile: Profile) -> bool:
        """Whether `profile` stays within all caps."""
        return all(cap.slack(space, profile) >= 0 for cap in self.caps(space))

    def holds_in_sum(self, space: Space, profile: Profile) -> bool:
        """Whether all units together are within the budget, no matter how the trade groups share it."""
        return space.cost(profile) <= sum(cap.max_cost for cap in self.caps(space))

    def achieved(self, space: Space, profile: Profile) -> float:
        """The value of the metric for `profile`, to be compared with `target`; bytes for a size."""
        if self.metric == "size":
            return space.size_bytes(profile)
        cost = space.cost(profile)
        if self.metric == "bits":
            return cost / space.num_weights
        dense_cost = space.num_weights if self.metric == "sparsity" else _highest_cost(space, range(len(space)))
        return 1 - cost / dense_cost

    def amount(self, space: Space, profile: Profile) -> str:
        """What `profile` achieves, for people."""
        achieved = self.achieved(space, profile)
        return f"{achieved:.0f} bytes" if self.counts_bytes else f"{achieved:g}"

    def facts(self, space: Space, profile: Profile) -> dict[str, object]:
        """The budget and what `profile` achieves, for the results of a run."""
        return {"metric": self.metric, "target": self.target, "achieved": self.achieved(space, profile)}

    def __str__(self) -> str:
        return f"{self.target} {self.metric}" if self.metric != "size" else str(self.target)


_EXAMPLES = {
    "bits": "budget=3bit",
    "sparsity": "budget=sparsity50",
    "drop": "budget=drop25",
    "size": "budget=size budget.target=80MB",
    "memory": "budget=memory budget.target=24GB",
    "latency": "budget=latency budget.target=20ms budget.table=FILE",
}


def _drop_cap(space: Space, members: tuple[int, ...], target: Fraction) -> Cap:
    num_kept = len(members) - floor(target * len(members) + Fraction(1, 2))
    return Cap(members, _highest_cost(space, members) * num_kept // len(members))


def _highest_cost(space: Space, members: Sequence[int]) -> int:
    """The cost of `members` when nothing is compressed."""
    return sum(space.units[index].levels[0].cost for index in members)
