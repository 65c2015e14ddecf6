"""The record of a run, in plain values."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from evopress.report.choices import Choice
from evopress.report.in_engine import InEngine
from evopress.report.search_history import EvaluatedBatch, fitness_of
from evopress.search.encoding import encode

CANDIDATES = ("dense", "uniform", "searched", "tuned", "uniform_tuned")

ALWAYS = frozenset({"dense", "uniform", "searched"})
"""The candidates of every evaluated run. Only runs with tuning have the others."""


@dataclass(frozen=True, kw_only=True)
class CandidateScores:
    """Size and scores of one model. The keys of mappings are data sets or tasks; KL is in nats per token."""

    size_bytes: int
    bits_per_weight: float
    bits_per_weight_with_scales: float
    perplexity: Mapping[str, float] = field(default_factory=dict)
    kl: Mapping[str, float] = field(default_factory=dict)
    tasks: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    kl_by_position: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """An exported checkpoint. `kl` and `same_top_token` compare the loaded checkpoint with the model of the run."""

    format: str
    folder: str
    size_bytes: int
    kl: float
    same_top_token: float


@dataclass(frozen=True)
class Answers:
    """Greedy answers to a prompt, of the dense and of the compressed model."""

    prompt: str
    dense: str
    compressed: str


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything known about one run. Unknown values are empty.

    `defects` name damaged files; `warnings` include them.
    """

    folder: Path
    model: str = "unknown model"
    method: str = "unknown method"
    search: str = ""
    seed: str = ""
    metric: str = ""
    target: float | str = ""
    achieved: float | None = None
    seconds_per_step: float | None = None
    """The time of a step of generation, if there is a second budget of latency."""
    fitness: str = ""
    convention: str = ""
    candidates: Mapping[str, CandidateScores] = field(default_factory=dict)
    choices: tuple[Choice, ...] = ()
    checkpoints: tuple[Checkpoint, ...] = ()
    memory: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Bytes of the weights, the cache and the reserve of each candidate. Only runs with a budget of memory have it."""
    active_bytes: Mapping[str, float] = field(default_factory=dict)
    """The bytes that a token uses, by candidate. Only runs with a mixture of experts have it."""
    stopped: str = ""
    """Why the search was stopped before its end: "effort" or "finish"."""
    answers: tuple[Answers, ...] = ()
    engine: str = ""
    """The engine in which checkpoints were measured, with its version."""
    in_engine: Mapping[str, InEngine] = field(default_factory=dict)
    batches: tuple[EvaluatedBatch, ...] = ()
    tuning: Mapping[str, tuple[tuple[int, float], ...]] = field(default_factory=dict)
    """(step, KL on validation tokens) at each check, by name of the tuned candidate."""
    tokens: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    peak_bytes: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    command: str = ""
    defects: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def short_path(self) -> str:
        """The last three parts of the path of the folder."""
        return "/".join(self.folder.resolve().parts[-3:])

    @property
    def budget(self) -> str:
        """The budget in words, such as "3 bits" or "25 % dropped"."""
        words = {
            "bits": "bits",
            "sparsity": "sparse",
            "drop": "dropped",
            "size": "",
            "memory": "of memory",
            "latency": "per step",
        }
        is_share = self.metric in ("sparsity", "drop") and isinstance(self.target, float)
        number = f"{self.target:g}" if isinstance(self.target, float) else self.target
        target = f"{100 * float(self.target):g} %" if is_share else number
        return f"{target} {words.get(self.metric, self.metric)}".strip()

    @property
    def title(self) -> str:
        return ", ".join(filter(None, (self.model, self.method, self.budget)))

    @property
    def data_sets(self) -> tuple[str, ...]:
        """Names of the test sets."""
        return tuple(dict.fromkeys(name for scores in self.candidates.values() for name in scores.perplexity))

    @property
    def final(self) -> str:
        """The name of the candidate that the run is about: the tuned model if there is one."""
        return "tuned" if "tuned" in self.candidates else "searched"

    @property
    def cells(self) -> Mapping[tuple[int, str], Choice]:
        """The choice for every (block, kind of unit)."""
        return {(block, choice.kind): choice for choice in self.choices for block in choice.blocks}

    @property
    def kinds(self) -> list[str]:
        """The kinds of units inside blocks, in the order of the profile."""
        return list(dict.fromkeys(choice.kind for choice in self.choices if choice.blocks))

    @property
    def stages(self) -> Mapping[str, bool]:
        """Whether the stages database, search and evaluate are done."""
        has_profile = bool(self.choices)
        return {
            "database": has_profile or bool(self.batches),
            "search": has_profile,
            "evaluate": self.candidates.keys() >= ALWAYS,
        }

    @property
    def resume_command(self) -> str:
        return f"python -m evopress.run resume={shlex.quote(str(self.folder))}"

    @property
    def search_fitness(self) -> float | None:
        """The fitness that the search measured for its result, on the largest minibatch."""
        return fitness_of(encode(tuple(choice.level for choice in self.choices)), self.batches)
