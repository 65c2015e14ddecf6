"""What a run will take, foretold from the configuration alone: memory, disk, tokens and hours of each stage.

Nothing is loaded but the model's configuration: the model stands on the `meta` device, without weights. With P weights
in the blocks and the head, and for each group of layers rows × cols of them that share an input::

    forward pass    2 P operations per token
    database        two forward passes over the calibration tokens; with a Hessian, cols² per token and group (half of
                    a symmetric product), ⅔ cols³ for its factor, rows cols² for each level and 2 rows cols² to weigh
                    the levels' errors
    search          the search itself is run on random answers, that of every target; common prefixes of profiles count
                    once
    evaluate        dense, uniform and searched model on every test set
    memory          weights, and the largest of what the stages hold besides them, by the terms of `_memory`
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from evopress.compressors.drop import Drop
from evopress.compressors.sweep import MAX_ELEMENTS
from evopress.models.family_match import expert_of
from evopress.models.language_model import LanguageModel
from evopress.models.loading import load_structure
from evopress.models.source import ModelSource, device_of, dtype_of
from evopress.models.structure import ModelStructure
from evopress.planning.dry_run import Rehearsal, rehearsed
from evopress.runtime import distributed
from evopress.space.build import drop_space, layer_space
from evopress.space.units import Space
from evopress.targets import jobs_by_target

if TYPE_CHECKING:
    from evopress.job import Job

LIBRARIES_BYTES = 500_000_000
"""What the libraries take in the memory of a process, measured with torch 2.13 for the CPU."""


@dataclass(frozen=True)
class Amount:
    """A part of the memory of a stage, and the setting that changes it."""

    what: str
    bytes: int
    key: str


@dataclass(frozen=True)
class StagePlan:
    """`tokens` go through the model, in full-forward equivalents.

    Floating-point operations are those of all processes: `operations` in the model's type, `solving` in float32.
    """

    name: str
    tokens: float
    operations: float
    memory: tuple[Amount, ...]
    solving: float = 0.0

    @property
    def memory_bytes(self) -> int:
        """Of one process, at the peak."""
        return sum(amount.bytes for amount in self.memory)


@dataclass(frozen=True)
class Plan:
    """What the run takes. `database_bytes` are those of the levels, without the headers of the files.

    `states_bytes` are those of hidden states that lie in files while the database is built, all processes together.
    """

    num_weights: int
    num_units: int
    database_bytes: int
    states_bytes: int
    stages: tuple[StagePlan, ...]


def plan(job: "Job") -> Plan:
    """Foretell the job. Raises ValueError where the model's configuration cannot be read or settings do not fit."""
    lm = job.model if isinstance(job.model, LanguageModel) else load_structure(job.model)
    device = device_of(job.model) if isinstance(job.model, ModelSource) else lm.device
    dtype = dtype_of(job.model, device) if isinstance(job.model, ModelSource) else lm.dtype
    space = _space(job, lm)
    stages = _Stages(job, lm, space, dtype)
    return Plan(
        num_weights=sum(parameter.numel() for parameter in lm.model.parameters()),
        num_units=len(space),
        database_bytes=_level_bytes(space),
        states_bytes=stages.spilled_bytes,
        stages=(stages.database(), *stages.search_and_evaluate()),
    )


@dataclass(frozen=True)
class _Stages:
    """The stages of one job, with what they share."""

    job: "Job"
    lm: ModelStructure
    space: Space
    dtype: torch.dtype

    @property
    def _in_blocks(self) -> float:
        """Weights in the blocks that a token meets, on average."""
        layers = [local for group in self.lm.layer_groups for local in group]
        return self.lm.num_blocks * sum(
            self._share(local) * self.lm.linear(0, local).weight.numel() for local in layers
        )

    def _share(self, local: str) -> float:
        """Of the tokens, how many a layer sees: all, or those that are routed to its expert."""
        expert = expert_of(local)
        if expert is None:
            return 1.0
        number = len(list(self.lm.blocks[0].get_submodule(expert[0]).children()))
        return getattr(self.lm.model.config, "num_experts_per_tok", number) / number

    @property
    def _per_token(self) -> float:
        return 2.0 * (self._in_blocks + self.lm.vocab_size * self.lm.hidden_size)

    def database(self) -> StagePlan:
        tokens = self.job.data.num_windows("calibration") * self.job.data.window
        compress = self.job.compress
        if isinstance(compress, Drop) or not compress.needs_hessian:
            return StagePlan("database", 0, 0, self._memory())
        solving = 0.0
        num_levels = max(len(unit.levels) for unit in self.space.units)
        for (rows, cols), (first, *_) in zip(self._groups(), self.lm.layer_groups, strict=True):
            of_group = self._share(first) * tokens * cols**2 + cols**3 / 1.5 + (num_levels + 2.0) * rows * cols**2
            solving += self.lm.num_blocks * of_group
        hessians = 8 * sum(cols**2 for _, cols in self._groups())  # of the chunk at hand, and their sum
        factors = 12 * max(cols**2 for _, cols in self._groups())
        lanes = max(
            rows * cols * max(1, min(num_levels, MAX_ELEMENTS // (rows * cols))) for rows, cols in self._groups()
        )
        states = min(self.state_bytes, int(self.job.evaluator.states_gb * 1e9))
        block = _level_bytes(self.space) // self.lm.num_blocks
        return StagePlan(
            "database",
            2.0 * tokens,
            4.0 * self._in_blocks * tokens,
            (
                *self._memory(),
                Amount("hidden states of the calibration tokens", states, "lower evaluator.states_gb"),
                Amount("Hessians and factors", hessians + factors, "they depend on the model only"),
                Amount("levels being solved", 9 * lanes, "take fewer levels in compress.bits"),
                Amount("levels being written", 2 * block, "take fewer levels in compress.bits"),
            ),
            solving,
        )

    @property
    def spilled_bytes(self) -> int:
        """What of that lies in files, of all processes."""
        compress = self.job.compress
        is_spilled = self.state_bytes > self.job.evaluator.states_gb * 1e9
        needs_states = not isinstance(compress, Drop) and compress.needs_hessian
        return self.state_bytes * distributed.world_size() * (is_spilled and needs_states)

    @property
    def state_bytes(self) -> int:
        """Hidden states of this process's calibration tokens; in a file where they exceed `evaluator.states_gb`."""
        tokens = self.job.data.num_windows("calibration") * self.job.data.window
        return tokens // distributed.world_size() * self.lm.hidden_size * self.dtype.itemsize

    def search_and_evaluate(self) -> tuple[StagePlan, StagePlan]:
        searches = self._rehearsals()
        searching = sum(each.tokens for each in searches)
        windows = self.job.data.num_windows("test") * (1 + len(self.job.eval.datasets))
        evaluating = 4.0 * len(searches) * windows * self.job.data.window
        memory = (*self._memory(), *self._evaluator(frozenset().union(*(each.seen for each in searches))))
        return (
            StagePlan("search", searching, searching * self._per_token, memory),
            StagePlan("evaluate", evaluating, evaluating * self._per_token, memory),
        )

    def _rehearsals(self) -> list[Rehearsal]:
        """Of every target."""
        found: list[Rehearsal] = []
        for part in jobs_by_target(self.job, self.space, lambda: [each.profile for each in found[-1:]]):
            found.append(rehearsed(part, self.lm.num_blocks, self.space))
        return found or [rehearsed(self.job, self.lm.num_blocks, self.space)]

    def _groups(self) -> list[tuple[int, int]]:
        """Rows and columns of each group of a block."""
        return [
            (
                sum(self.lm.linear(0, local).weight.shape[0] for local in group),
                self.lm.linear(0, group[0]).weight.shape[1],
            )
            for group in self.lm.layer_groups
        ]

    def _memory(self) -> tuple[Amount, ...]:
        """What is held in every stage."""
        weights = self._resident_weights() * self.dtype.itemsize
        widest = max(max(shape) for shape in self._groups())
        at_once = max(self.job.data.window, self.job.evaluator.batch_tokens)
        return (
            Amount("the libraries", LIBRARIES_BYTES, "they take the same for every model"),
            Amount("the model's weights", weights, "set model.offload=true or model.dtype=bfloat16"),
            Amount("a batch in a block", 4 * at_once * widest * self.dtype.itemsize, "lower evaluator.batch_tokens"),
        )

    def _resident_weights(self) -> int:
        """Of the model, or of all but its blocks and one of them."""
        weights = sum(parameter.numel() for parameter in self.lm.model.parameters())
        if not (isinstance(self.job.model, ModelSource) and self.job.model.offload):
            return weights
        of_blocks = [sum(parameter.numel() for parameter in block.parameters()) for block in self.lm.blocks]
        return weights - sum(of_blocks) + max(of_blocks)

    def _evaluator(self, seen: frozenset[tuple[int, int]]) -> tuple[Amount, ...]:
        settings, hidden = self.job.evaluator, self.lm.hidden_size * self.dtype.itemsize
        units = [self.space.units[index] for index, _ in seen]
        decoded = sum(unit.num_weights for unit in units if unit.layers)
        cache = min(int(settings.cache_gb * 1e9), decoded * self.dtype.itemsize)
        pool = self.job.data.num_windows("search") * self.job.data.window
        states = min(int(settings.states_gb * 1e9), 3 * pool * hidden)
        head = 6 * 4 * settings.head_tokens * self.lm.vocab_size
        return (
            Amount("decoded levels", cache, "lower evaluator.cache_gb"),
            Amount("hidden states of teacher and candidates", states, "lower evaluator.states_gb"),
            Amount("logits", head, "lower evaluator.head_tokens"),
        )


def _space(job: "Job", lm: ModelStructure) -> Space:
    if isinstance(job.compress, Drop):
        return drop_space(lm, job.compress, job.space)
    space = layer_space(lm, job.compress.for_hidden_size(lm.hidden_size), job.space)
    return space.with_costs_in_bytes() if job.budget.metric == "size" else space


def _level_bytes(space: Space) -> int:
    return sum(level.size_bytes for unit in space.units if unit.layers for level in unit.levels)
