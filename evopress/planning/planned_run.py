"""A job with the shapes of its model and its space, but without any weights."""

from dataclasses import dataclass

import torch

from evopress.compressors.drop import Drop
from evopress.job import Job
from evopress.models.loading import load_structure
from evopress.models.source import ModelSource, device_of, dtype_of
from evopress.models.structure import ModelStructure
from evopress.runtime import distributed
from evopress.space.build import drop_space, layer_space
from evopress.space.units import Space


@dataclass(frozen=True)
class PlannedRun:
    """What all estimates of a job are made from. `dtype` is the type that the model will have in memory."""

    job: Job
    model: ModelStructure
    space: Space
    dtype: torch.dtype

    @property
    def needs_hessians(self) -> bool:
        compress = self.job.compress
        return not isinstance(compress, Drop) and compress.needs_hessian

    @property
    def calibration_tokens(self) -> int:
        return self.job.data.num_windows("calibration") * self.job.data.window

    @property
    def calibration_state_bytes(self) -> int:
        """Size of the hidden states of the calibration tokens of one process."""
        tokens = self.calibration_tokens // distributed.world_size()
        return tokens * self.model.hidden_size * self.dtype.itemsize

    @property
    def limit_of_states(self) -> int:
        """Bytes of hidden states that a process may hold in memory. More calibration states go to a file."""
        return int(self.job.evaluator.states_gb * 1e9)

    @property
    def level_bytes(self) -> int:
        """Size of all levels of all units."""
        return sum(level.size_bytes for unit in self.space.units if unit.layers for level in unit.levels)


def plan_run(job: Job) -> PlannedRun:
    """Read the model's configuration and build its space. Raises ValueError where the model cannot be found."""
    model = load_structure(job.model) if isinstance(job.model, ModelSource) else job.model
    return PlannedRun(job, model, _space_of(job, model), device_and_dtype(job)[1])


def device_and_dtype(job: Job) -> tuple[torch.device, torch.dtype]:
    """The device that computes, and the type of the model's weights in memory."""
    if not isinstance(job.model, ModelSource):
        return job.model.device, job.model.dtype
    device = device_of(job.model)
    return device, dtype_of(job.model, device)


def _space_of(job: Job, model: ModelStructure) -> Space:
    if isinstance(job.compress, Drop):
        return drop_space(model, job.compress, job.space)
    space = layer_space(model, job.compress.for_hidden_size(model.hidden_size), job.space)
    return space.with_costs_in_bytes() if job.budget.metric == "size" else space
