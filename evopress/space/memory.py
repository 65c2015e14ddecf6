"""The budget `memory`: bytes that a model takes in the memory of an engine while it runs.

::

    weights    the compressed layers and everything else, as in the file of the engine
    cache      per kept attention: numbers per token · tokens it keeps · sequences · bytes per number
    reserve    what the engine itself takes, a number that the user states

Dropping an attention also saves its cache, so the search weighs this against widths of layers. An attention with a
sliding window keeps the tokens of its window, and those tokens of a prompt that engines process at once.

A budget of latency may hold at the same time, see `shares.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field, field_validator

from evopress.models.attention_cache import AttentionCache
from evopress.runtime.config_class import config_class
from evopress.space.budget import Budget, Cap
from evopress.space.byte_sizes import in_bytes, parse_bytes
from evopress.space.latency import LatencyBudget
from evopress.space.shares import whole
from evopress.space.units import Profile, Space

PROMPT_TOKENS = 512
"""Tokens of a prompt that engines process at once (llama.cpp's ubatch). Caches with a window keep them as well."""


@dataclass(frozen=True)
class CacheType:
    """A type of numbers in a cache: `block` numbers together take `num_bytes`."""

    block: int
    num_bytes: int

    def bytes_of(self, num_values: int) -> int:
        """Bytes of `num_values` numbers, in whole blocks."""
        return -(-num_values // self.block) * self.num_bytes


CACHE_TYPES: Mapping[str, CacheType] = {
    "f16": CacheType(1, 2),
    "bf16": CacheType(1, 2),
    "fp8": CacheType(1, 1),
    "q8_0": CacheType(32, 34),
    "q4_0": CacheType(32, 18),
}
"""The types of a cache by their names in engines. q8_0 and q4_0 exist in llama.cpp, and fp8 in vLLM."""


@config_class
class MemoryBudget(Budget):
    """Bytes in memory while `batch` sequences of `context` tokens each are processed.

    Attributes:
        target: The memory that there is, such as 24GB.
        context: Tokens of a sequence, prompt and answer together.
        batch: Number of sequences at once.
        kv: Type of the numbers in the cache of keys and values, one of `CACHE_TYPES`.
        reserve: What the engine itself takes, such as 1GB: its libraries and buffers.
        also: A budget of latency that must hold at the same time.
    """

    metric: Literal["memory"] = "memory"
    context: int = Field(default=8192, gt=0)
    batch: int = Field(default=1, gt=0)
    kv: str = "f16"
    reserve: float | str = "1GB"
    also: LatencyBudget | None = None

    @field_validator("kv")
    @classmethod
    def _check_kv(cls, kv: str) -> str:
        if kv not in CACHE_TYPES:
            raise ValueError(f"it must be a type of the cache: {', '.join(CACHE_TYPES)}")
        return kv

    @field_validator("reserve")
    @classmethod
    def _check_reserve(cls, reserve: float | str) -> float | str:
        parse_bytes(reserve)
        return reserve

    @property
    def remedy(self) -> str:
        return "raise budget.target, lower budget.context, budget.batch or budget.reserve, or set a smaller budget.kv"

    def __post_init__(self) -> None:
        parse_bytes(self.target)

    def __str__(self) -> str:
        return f"{self.target} of memory" + (f" and {self.also}" if self.also else "")

    @property
    def identity(self) -> dict[str, object]:
        return {**super().identity, "also": self.also and self.also.identity}

    def caps(self, space: Space) -> tuple[Cap, ...]:
        """One cap on all units: what the target leaves after the reserve and everything that cannot be compressed.

        With a second budget, costs are shares, and the cap is the whole, see `shares.py`.
        """
        if space.priced:
            return whole(space)
        fixed = space.fixed_bytes + space.fixed_cost + parse_bytes(self.reserve)
        return (Cap(tuple(range(len(space))), parse_bytes(self.target) - fixed),)

    def parts(self, space: Space, profile: Profile) -> dict[str, int]:
        """Bytes of the weights, the cache and the reserve."""
        space = space.priced[0] if space.priced else space
        weights = space.size_bytes(profile)
        cache = space.fixed_bytes + space.fixed_cost + space.cost(profile) - weights
        return {"weights": weights, "cache": cache, "reserve": parse_bytes(self.reserve)}

    def achieved(self, space: Space, profile: Profile) -> float:
        return sum(self.parts(space, profile).values())

    def amount(self, space: Space, profile: Profile) -> str:
        parts = self.parts(space, profile)
        listed = ", ".join(f"{name} {in_bytes(size)}" for name, size in parts.items())
        time = f" and {self.also.amount(space.priced[1], profile)} per step" if self.also else ""
        return f"{in_bytes(sum(parts.values()))} ({listed}){time}"

    def facts(self, space: Space, profile: Profile) -> dict[str, object]:
        settings = {"context": self.context, "batch": self.batch, "kv": self.kv, "parts": self.parts(space, profile)}
        also = {"also": self.also.facts(space.priced[1], profile)} if self.also else {}
        return {**super().facts(space, profile), **settings, **also}

    def cache_bytes(self, caches: Sequence[AttentionCache]) -> list[int]:
        """Bytes of the cache of every block."""

        def bytes_of(cache: AttentionCache) -> int:
            kept = self.context if cache.window is None else min(cache.window + PROMPT_TOKENS, self.context)
            return CACHE_TYPES[self.kv].bytes_of(cache.num_values) * kept * self.batch

        return [bytes_of(cache) for cache in caches]
