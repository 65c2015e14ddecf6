"""How much a compressed model may cost, in exact integers."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor
from typing import Literal

from pydantic import field_validator

from evopress.runtime.config_class import config_class
from evopress.space.units import Profile, Space

Metric = Literal["bits", "sparsity", "drop", "size"]
"""Mean bits per weight, share of weights removed, share of sub-blocks removed, or bytes of the file."""

_SUFFIXES = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True)
class Cap:
    """The costs of `members` (unit indices) may add up to at most `max_cost`."""

    members: tuple[int, ...]
    max_cost: int

    def slack(self, space: Space, profile: Sequence[int]) -> int:
        """Cost that is left; negative when the cap is broken."""
        return self.max_cost - space.cost(profile, self.members)


@config_class
class Budget:
    """A metric and its target: 3 (bits), 0.5 (sparsity), 0.25 (drop) or "80MB" (size; MB is 10^6, MiB 2^20 bytes)."""

    metric: Metric
    target: float | str

    @field_validator("target", mode="before")
    @classmethod
    def _is_number_or_size(cls, target: object) -> object:
        if not isinstance(target, str) or re.fullmatch(r"\s*\d[0-9.]*\s*[A-Za-z]+\s*", target):
            return target
        try:
            return float(target)
        except ValueError:
            raise ValueError("it must be a number, or a size such as 80MB") from None

    def __post_init__(self) -> None:
        if self.metric == "size":
            parse_bytes(self.target)
            return
        if isinstance(self.target, str):
            raise ValueError(f"{self.target!r} is a size: use budget=size, or a plain number for {self.metric}")
        low, high = {"bits": (0, 32), "sparsity": (0, 1), "drop": (0, 1)}[self.metric]
        if not low <= self.target <= high:
            raise ValueError(f"{self.target:g} is outside {low} to {high} for budget.metric={self.metric}")

    def check(self, counted: Metric, span: tuple[float, float]) -> None:
        """Raises ValueError unless a compressor that counts `counted`, and reaches `span`, can meet it.

        Needs no model, so a mistake shows at start-up.
        """
        fitting = ("bits", "size") if counted == "bits" else (counted,)
        if self.metric not in fitting:
            examples = " or ".join(_EXAMPLES[metric] for metric in fitting)
            raise ValueError(f"budget.metric is {self.metric} but this compressor counts {counted}: use {examples}")
        if self.metric == "size":
            return
        target, (low, high) = float(self.target), span
        if self.metric == "bits" and target < low:
            raise ValueError(
                f"budget.target is {target:g} bits but the smallest level is {low:g}: "
                f"raise budget.target to at least {low:g} or add a smaller width to compress.bits"
            )
        if self.metric != "bits" and target > high:
            raise ValueError(
                f"budget.target is {target:g} but the strongest level removes {high:g}: "
                f"lower budget.target or change the levels of compress"
            )

    def caps(self, space: Space) -> tuple[Cap, ...]:
        """The limits on `space`, whose level costs must count this budget's metric.

        Drops have one limit per trade group, so that as many attentions as MLPs go; the number of dropped units is the
        nearest integer (a half rounds up). The others have one limit over all units.
        """
        everything = tuple(range(len(space)))
        if self.metric == "size":
            return (Cap(everything, parse_bytes(self.target) - space.fixed_bytes),)
        target = Fraction(repr(float(self.target)))
        if self.metric == "bits":
            return (Cap(everything, floor(target * space.num_weights)),)
        if self.metric == "sparsity":
            return (Cap(everything, sum(unit.num_weights - ceil(target * unit.num_weights) for unit in space.units)),)
        return tuple(
            Cap(members, _total_cost(space, members) * (len(members) - num_dropped) // len(members))
            for members in space.trade_groups.values()
            for num_dropped in [floor(target * len(members) + Fraction(1, 2))]
        )

    def holds(self, space: Space, profile: Profile) -> bool:
        return all(cap.slack(space, profile) >= 0 for cap in self.caps(space))

    def achieved(self, space: Space, profile: Profile) -> float:
        """The metric's value for `profile`, comparable with `target` (bytes for a size)."""
        if self.metric == "size":
            return space.size_bytes(profile)
        cost = space.cost(profile)
        if self.metric == "bits":
            return cost / space.num_weights
        return 1 - cost / (space.num_weights if self.metric == "sparsity" else _total_cost(space, range(len(space))))

    def __str__(self) -> str:
        return f"{self.target} {self.metric}" if self.metric != "size" else str(self.target)


_EXAMPLES = {
    "bits": "budget=3bit",
    "sparsity": "budget=sparsity50",
    "drop": "budget=drop25",
    "size": "budget=size budget.target=80MB",
}


def _total_cost(space: Space, members: tuple[int, ...] | range) -> int:
    return sum(space.units[index].levels[0].cost for index in members)


def parse_bytes(size: float | str) -> int:
    """`80MB`, `1.5 GiB` or a plain number of bytes, as an integer. Raises ValueError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z]*)\s*", str(size))
    if not match or (match[2] or "B").upper() not in _SUFFIXES:
        raise ValueError(f"{size!r} is not a size: write for example 80MB, 3.5GB or 75MiB")
    return floor(Fraction(match[1]) * _SUFFIXES[(match[2] or "B").upper()])
