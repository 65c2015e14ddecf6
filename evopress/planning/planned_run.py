"""A job together with its model and its space, but without any weights."""

from dataclasses import dataclass, replace
from functools import cached_property

import torch

from evopress.compressors.drop import Drop
from evopress.export import fixed_bytes, fixed_tensor_bytes
from evopress.job import Job
from evopress.models.attention_cache import attention_caches
from evopress.models.language_model import LanguageModel
from evopress.models.loading import load_structure, load_tokenizer
from evopress.models.source import ModelSource, device_of, dtype_of
from evopress.models.structure import ModelStructure
from evopress.runtime import distributed
from evopress.space.attention_costs import with_attention_costs
from evopress.space.build import drop_space, layer_space
from evopress.space.choices import Choices
from evopress.space.latency import LatencyBudget, with_latencies
from evopress.space.memory import MemoryBudget
from evopress.space.shares import as_shares
from evopress.space.units import Space


@dataclass(frozen=True)
class PlannedRun:
    """The input of all estimates of a job. `dtype` is the type that the model will have in memory."""

    job: Job
    model: ModelStructure
    space: Space
    dtype: torch.dtype

    @cached_property
    def lm(self) -> LanguageModel:
        """The model with its tokenizer, without weights. Raises ValueError if there is no tokenizer."""
        return _with_tokenizer(self.job, self.model)

    @cached_property
    def choices(self) -> Choices:
        """What reads profiles of the space."""
        return Choices(self.space, self.model)

    @property
    def device(self) -> torch.device:
        return device_and_dtype(self.job)[0]

    @property
    def weighs_tokens(self) -> bool:
        compress = self.job.compress
        return not isinstance(compress, Drop) and compress.needs_token_weights

    @property
    def needs_hessians(self) -> bool:
        compress = self.job.compress
        return not isinstance(compress, Drop) and compress.needs_hessian

    @property
    def calibration_tokens(self) -> int:
        return self.job.data.num_windows("calibration") * self.job.data.window

    @property
    def state_bytes(self) -> int:
        """Size of the hidden state of one token."""
        return self.model.hidden_size * self.dtype.itemsize

    @property
    def calibration_state_bytes(self) -> int:
        """Size of the hidden states of the calibration tokens of one process."""
        return self.calibration_tokens // distributed.world_size() * self.state_bytes

    @property
    def limit_of_states(self) -> int:
        """Bytes of hidden states that a process may hold in memory."""
        return int(self.job.evaluator.states_gb * 1e9)

    @property
    def file_state_bytes(self) -> int:
        """Size of the hidden states of the calibration tokens that exceed `limit_of_states` and are kept in files."""
        return max(0, self.calibration_state_bytes - self.limit_of_states) if self.needs_hessians else 0

    @property
    def num_levels(self) -> int:
        """The largest number of levels of a layer in a block; 0 if the job only drops parts."""
        return max((len(unit.levels) for unit in self.space.units if unit.layers and unit.blocks), default=0)

    @property
    def num_head_levels(self) -> int:
        """The number of levels of the head; 0 if it is not compressed."""
        head = self.model.embedding_and_head[-1]
        return max((len(unit.levels) for unit in self.space.units if head in unit.layers), default=0)

    @property
    def level_bytes(self) -> int:
        """Size of all levels of all units."""
        return sum(level.size_bytes for unit in self.space.units if unit.layers for level in unit.levels)


def plan_run(job: Job) -> PlannedRun:
    """Read the model's configuration and build its space. Raises ValueError if the model cannot be found."""
    model = load_structure(job.model, job.outputs / "cache") if isinstance(job.model, ModelSource) else job.model
    needs_tokenizer = job.budget.metric == "size"  # some files contain it
    return PlannedRun(job, model, space_of(job, _with_tokenizer(job, model) if needs_tokenizer else model), model.dtype)


def _with_tokenizer(job: Job, model: ModelStructure) -> LanguageModel:
    if isinstance(model, LanguageModel):
        return model
    assert isinstance(job.model, ModelSource)
    tokenizer = load_tokenizer(job.model, job.outputs / "cache")
    return LanguageModel(model=model.model, tokenizer=tokenizer, family=model.family, name=model.name)


def device_and_dtype(job: Job) -> tuple[torch.device, torch.dtype]:
    """The device that computes, and the type of the model's weights in memory."""
    if not isinstance(job.model, ModelSource):
        return job.model.device, job.model.dtype
    device = device_of(job.model)
    return device, dtype_of(job.model, device)


def space_of(job: Job, model: ModelStructure) -> Space:
    """The space that the job searches on a model, with the costs that its budget counts.

    If the budget is a file size and the model has its tokenizer, the fixed bytes are those of the files to write, some
    of which contain the tokenizer.
    """
    space, budget = unpriced_space(job, model), job.budget
    if isinstance(budget, LatencyBudget):
        return _in_nanoseconds(job, budget, model, space)
    if isinstance(budget, MemoryBudget):
        in_memory = _in_memory(job, budget, model, space)
        if budget.also is None:
            return in_memory
        in_time = _in_nanoseconds(job, budget.also, model, space)
        return as_shares((in_memory, replace(budget, also=None)), (in_time, budget.also))
    if budget.metric == "size":
        space = space.with_costs_in_bytes()
        if isinstance(model, LanguageModel):
            return replace(space, fixed_bytes=fixed_bytes(job.export, model, space))
    return space


def _in_memory(job: Job, budget: MemoryBudget, model: ModelStructure, space: Space) -> Space:
    """The space with costs in bytes, caches included."""
    space = space.with_costs_in_bytes()
    space = replace(space, fixed_bytes=fixed_tensor_bytes(job.export, model, space))
    return with_attention_costs(space, budget.cache_bytes(attention_caches(model)))


def _in_nanoseconds(job: Job, budget: LatencyBudget, model: ModelStructure, space: Space) -> Space:
    """The space with the times of the table as costs."""
    levels = None if isinstance(job.compress, Drop) else job.compress.for_hidden_size(model.hidden_size)
    return with_latencies(space, model, levels, budget.read_table())


def unpriced_space(job: Job, model: ModelStructure) -> Space:
    """The space of the job, with the costs that its compressor counts."""
    if isinstance(job.compress, Drop):
        return drop_space(model, job.compress, job.space)
    return layer_space(model, job.compress.for_hidden_size(model.hidden_size), job.space)
