"""What a run will take, foretold from the configuration alone: memory, disk, tokens and hours of each stage.

Nothing is loaded but the model's configuration: the model stands on the `meta` device, without weights. With P weights
in the blocks and the head, and for each group of layers rows × cols of them that share an input::

    forward pass    2 P operations per token
    database        two forward passes over the calibration tokens; with a Hessian, 2 cols² per token and group,
                    2 cols³ for its factor and 2 rows cols² for each level
    search          the search itself is run on random answers; common prefixes of profiles count once
    evaluate        dense, uniform and searched model on every test set
    memory          weights, and the largest of what the stages hold besides them, by the terms of `_memory`
"""

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from time import perf_counter
from typing import TYPE_CHECKING

import torch
from transformers import AutoModelForCausalLM

from evopress import curvature, processes
from evopress.compress.drop import Drop
from evopress.compress.sweep import MAX_ELEMENTS
from evopress.experts import unpack
from evopress.families import expert_of, family_of, with_experts
from evopress.loading import ModelSource, config_of, device_of, dtype_of
from evopress.models import LanguageModel
from evopress.profile import Profile, Space
from evopress.search.base import Answer, Batch, Question, Table
from evopress.search.moves import evenly_spaced_profile
from evopress.space import drop_space, layer_space

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
    """`tokens` go through the model, in full-forward equivalents; `operations` are floating point, of all processes."""

    name: str
    tokens: float
    operations: float
    memory: tuple[Amount, ...]

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
    lm = job.model if isinstance(job.model, LanguageModel) else without_weights(job.model)
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


def without_weights(source: ModelSource) -> LanguageModel:
    """The model on the `meta` device, from its configuration; it has no tokenizer and cannot be run."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of(source), trust_remote_code=source.trust_remote_code)
    unpack(model, model.config.model_type)
    family = with_experts(source.family, model) if source.family else family_of(model, model.config.model_type)
    return LanguageModel(model, None, family, source.name)  # type: ignore[arg-type]


def plan_text(found: Plan, job: "Job") -> str:
    """The plan as a table, with what does not fit and the setting to change."""
    device = device_of(job.model) if isinstance(job.model, ModelSource) else job.model.device
    rate, free, disk = operations_per_second(device), free_bytes(device), shutil.disk_usage(_existing(job.outputs)).free
    lines = [
        f"{job.model.name}: {found.num_weights:,} weights, {found.num_units} units",
        f"disk: {_size(found.database_bytes)} for the database of levels, {_size(found.states_bytes)} for hidden "
        f"states while it is built; {_size(disk)} are free at {job.outputs}",
        f"memory of {device}: {_size(free)} are free for each of {processes.world_size()} processes",
        f"time: at {rate / 1e9:,.0f} billion operations per second, half of what a float32 product reaches on {device}",
        "",
        f"{'stage':10}{'tokens':>16}{'tokens/s':>12}{'hours':>10}{'peak memory':>14}",
        "-" * 62,
    ]
    for stage in found.stages:
        seconds = stage.operations / rate / processes.world_size()
        speed = stage.tokens / seconds if seconds else 0.0
        lines.append(
            f"{stage.name:10}{stage.tokens:16,.0f}{speed:12,.0f}{seconds / 3600:10.2f}{_size(stage.memory_bytes):>14}"
        )
    for stage in found.stages:
        lines.append("")
        lines += [
            f"{stage.name:10}{_size(part.bytes):>10}  {part.what}  ({part.key})" for part in stage.memory if part.bytes
        ]
    return "\n".join([*lines, "", *(advice(found, free_memory=free, free_disk=disk) or ["Everything fits."])])


def advice(found: Plan, *, free_memory: int, free_disk: int) -> list[str]:
    """One line for each thing that does not fit, with the settings to change."""
    lines = []
    if found.database_bytes + found.states_bytes > free_disk:
        lines.append(
            f"The database takes {_size(found.database_bytes)} and hidden states {_size(found.states_bytes)}, but "
            f"{_size(free_disk)} are free: set outputs to a larger disk, take fewer levels (compress.bits, "
            f"compress.num_levels), or lower data.calibration_tokens."
        )
    for stage in found.stages:
        if stage.memory_bytes > free_memory:
            largest = max(stage.memory, key=lambda amount: amount.bytes)
            lines.append(
                f"The {stage.name} stage takes {_size(stage.memory_bytes)} of memory but {_size(free_memory)} are "
                f"free, most of it for {largest.what}: {largest.key}."
            )
    return lines


def operations_per_second(device: torch.device) -> float:
    """Measured on a product of two matrices, float32; a model reaches about half of it, which is what this gives."""
    matrix = torch.ones(1024, 1024, device=device)
    matrix @ matrix
    started = perf_counter()
    for _ in range(4):
        product = matrix @ matrix
    float(product[0, 0])  # waits for the device
    return 0.5 * 4 * 2 * 1024**3 / (perf_counter() - started)


def free_bytes(device: torch.device) -> int:
    """Free memory of the device, or this process's share of the machine's for the CPU."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024 // processes.world_size()
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // processes.world_size()


@dataclass(frozen=True)
class _Stages:
    """The stages of one job, with what they share."""

    job: "Job"
    lm: LanguageModel
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
        operations = 4.0 * self._in_blocks * tokens
        num_levels = max(len(unit.levels) for unit in self.space.units)
        for (rows, cols), (first, *_) in zip(self._groups(), self.lm.layer_groups, strict=True):
            of_group = 2.0 * self._share(first) * tokens * cols**2 + 2.0 * cols**3 + 2.0 * num_levels * rows * cols**2
            operations += self.lm.num_blocks * of_group
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
            operations,
            (
                *self._memory(),
                Amount("hidden states of the calibration tokens", states, "lower evaluator.states_gb"),
                Amount("Hessians and factors", hessians + factors, "they depend on the model only"),
                Amount("levels being solved", 9 * lanes, "take fewer levels in compress.bits"),
                Amount("levels being written", 2 * block, "take fewer levels in compress.bits"),
            ),
        )

    @property
    def spilled_bytes(self) -> int:
        """What of that lies in files, of all processes."""
        compress = self.job.compress
        is_spilled = self.state_bytes > self.job.evaluator.states_gb * 1e9
        needs_states = not isinstance(compress, Drop) and compress.needs_hessian
        return self.state_bytes * processes.world_size() * (is_spilled and needs_states)

    @property
    def state_bytes(self) -> int:
        """Hidden states of this process's calibration tokens; in a file where they exceed `evaluator.states_gb`."""
        tokens = self.job.data.num_windows("calibration") * self.job.data.window
        return tokens // processes.world_size() * self.lm.hidden_size * self.dtype.itemsize

    def search_and_evaluate(self) -> tuple[StagePlan, StagePlan]:
        searching, seen = rehearsed(self.job, self.lm.num_blocks, self.space)
        windows = self.job.data.num_windows("test") * (1 + len(self.job.eval.datasets))
        evaluating = 4.0 * windows * self.job.data.window
        memory = (*self._memory(), *self._evaluator(seen))
        return (
            StagePlan("search", searching, searching * self._per_token, memory),
            StagePlan("evaluate", evaluating, evaluating * self._per_token, memory),
        )

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

    def _evaluator(self, seen: set[tuple[int, int]]) -> tuple[Amount, ...]:
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


def rehearsed(job: "Job", num_blocks: int, space: Space) -> tuple[float, set[tuple[int, int]]]:
    """Token equivalents of the search, run on random answers, and each (unit, level) that it looks at.

    The tokens of the dense model are included, the levels of the evenly spaced profile too.
    """
    rng = Random(job.seed)
    run = job.search.run(space, job.budget, Random(job.seed))
    pool = job.data.num_windows("search") * job.data.window
    total = 0.0
    seen = set(enumerate(evenly_spaced_profile(space, job.budget)))
    try:
        question = next(run)
        while True:
            total += min(question.num_tokens, pool) * _passes(question, num_blocks, space)
            seen |= _levels_of(question, space)
            question = run.send(_some_answer(question, num_blocks, space, rng))
    except StopIteration as stop:
        return total, seen | set(enumerate(stop.value))


def _levels_of(question: Question, space: Space) -> set[tuple[int, int]]:
    if isinstance(question, Batch):
        return {choice for profile in question.profiles for choice in enumerate(profile)}
    if question.kind == "switch_effects":
        return {(index, level) for index, unit in enumerate(space.units) for level in range(len(unit.levels))}
    return set()


def _passes(question: Question, num_blocks: int, space: Space) -> float:
    """Runs through the whole model that a question takes on its tokens."""
    if isinstance(question, Batch):
        return 1 + _distinct_blocks(question.profiles, num_blocks, space) / num_blocks
    if question.kind == "switch_effects":
        return curvature.token_equivalents(space, 1, int(question.arguments[0]))
    return 0.0 if question.kind == "layer_error" else 1.0


def _distinct_blocks(profiles: Sequence[Profile], num_blocks: int, space: Space) -> int:
    """Blocks to be run when profiles that agree up to a block share its run."""
    last = [unit.blocks[0] if unit.blocks else num_blocks for unit in space.units]
    ends = [max((index + 1 for index, at in enumerate(last) if at <= block), default=0) for block in range(num_blocks)]
    return sum(len({profile[:end] for profile in profiles}) for end in ends)


def _some_answer(question: Question, num_blocks: int, space: Space, rng: Random) -> Answer:
    if isinstance(question, Batch):
        return [rng.random() for _ in question.profiles]
    assert isinstance(question, Table)
    if question.kind == "switch_effects":
        return [[rng.random(), rng.random()] for unit in space.units for _ in unit.levels]
    if question.kind == "layer_error":
        return [[rng.random() for _ in unit.levels] for unit in space.units]
    num_rows = num_blocks if question.kind == "outliers" else len(space)
    return [[rng.random() for _ in question.arguments] for _ in range(num_rows)]


def _space(job: "Job", lm: LanguageModel) -> Space:
    if isinstance(job.compress, Drop):
        return drop_space(lm, job.compress, job.space)
    space = layer_space(lm, job.compress.for_hidden_size(lm.hidden_size), job.space)
    return space.priced_in_bytes() if job.budget.metric == "size" else space


def _level_bytes(space: Space) -> int:
    return sum(level.size_bytes for unit in space.units if unit.layers for level in unit.levels)


def _existing(folder: Path) -> Path:
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def _size(number: float) -> str:
    return f"{number / 1e9:,.1f} GB" if number >= 1e9 else f"{number / 1e6:,.1f} MB"
