"""What is known of a run, as plain values."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite, nan
from pathlib import Path

from evopress.search.driver import encode

CANDIDATES = ("dense", "uniform", "searched")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One model of the comparison. Mappings go from data set or task; KL is in nats per token."""

    size_bytes: int
    bits_per_weight: float
    bits_per_weight_with_scales: float
    perplexity: Mapping[str, float] = field(default_factory=dict)
    kl: Mapping[str, float] = field(default_factory=dict)
    tasks: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    kl_by_position: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """An exported checkpoint. `kl` and `same_top_token` compare it, as its engine loads it, with the searched model."""

    format: str
    folder: str
    size_bytes: int
    kl: float
    same_top_token: float


@dataclass(frozen=True)
class Choice:
    """The level that one unit received. `blocks` and `kind` are read off its name, such as model.layers.3.mlp.up_proj.

    `kept` orders levels of any method: bits, or the share that is not removed.
    """

    unit: str
    blocks: tuple[int, ...]
    kind: str
    level: int
    label: str
    kept: float
    size_bytes: int


@dataclass(frozen=True)
class Fitnesses:
    """One answered batch of the search. `spent` are token equivalents up to and with it."""

    label: str
    tokens: int
    spent: float
    values: tuple[float, ...]
    profiles: tuple[str, ...]

    @property
    def best(self) -> float:
        """The lowest value; NaN where none is a finite number."""
        return min(filter(isfinite, self.values), default=nan)


@dataclass(frozen=True, kw_only=True)
class Run:
    """All that is known of one run; what is not known is empty. `warnings` include `damages`."""

    folder: Path
    model: str = "unknown model"
    method: str = "unknown method"
    search: str = ""
    seed: str = ""
    metric: str = ""
    target: float | str = ""
    achieved: float | None = None
    fitness: str = ""
    convention: str = ""
    candidates: Mapping[str, Measured] = field(default_factory=dict)
    choices: tuple[Choice, ...] = ()
    checkpoints: tuple[Checkpoint, ...] = ()
    answers: tuple[Fitnesses, ...] = ()
    tokens: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    peak_bytes: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    command: str = ""
    damages: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def place(self) -> str:
        """The last parts of the folder's path, without what is only of this machine."""
        return "/".join(self.folder.resolve().parts[-3:])

    @property
    def budget(self) -> str:
        """The budget in words, such as "3 bits" or "25 % dropped"."""
        words = {"bits": "bits", "sparsity": "sparse", "drop": "dropped", "size": ""}
        share = self.metric in ("sparsity", "drop") and isinstance(self.target, float)
        number = f"{self.target:g}" if isinstance(self.target, float) else self.target
        target = f"{100 * float(self.target):g} %" if share else number
        return f"{target} {words.get(self.metric, self.metric)}".strip()

    @property
    def title(self) -> str:
        return ", ".join(filter(None, (self.model, self.method, self.budget)))

    @property
    def data_sets(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for found in self.candidates.values() for name in found.perplexity))

    @property
    def cells(self) -> Mapping[tuple[int, str], Choice]:
        """The choice of every block and kind of unit."""
        return {(block, choice.kind): choice for choice in self.choices for block in choice.blocks}

    @property
    def kinds(self) -> list[str]:
        """Kinds of units that lie in blocks, in the order in which they come."""
        return list(dict.fromkeys(choice.kind for choice in self.choices if choice.blocks))

    @property
    def stages(self) -> Mapping[str, bool]:
        """Which stages are done."""
        searched = bool(self.choices)
        return {
            "database": searched or bool(self.answers),
            "search": searched,
            "evaluate": set(CANDIDATES) <= self.candidates.keys(),
        }

    @property
    def resume_command(self) -> str:
        return f"python -m evopress.run resume={shlex.quote(str(self.folder))}"

    @property
    def search_fitness(self) -> float | None:
        """What the search measured of its own result, on the largest minibatch it met; the latest of equals."""
        profile = encode(tuple(choice.level for choice in self.choices))
        met = [
            (answer.tokens, number, value)
            for number, answer in enumerate(self.answers)
            for asked, value in zip(answer.profiles, answer.values, strict=True)
            if asked == profile
        ]
        return max(met)[2] if met else None
