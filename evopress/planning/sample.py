"""A model whose blocks of one kind are one random block, to measure the speed of a machine without the weights."""

from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import ModuleList

from evopress.compressors.base import Compressor
from evopress.evaluation.compressible_model import CompressibleModel
from evopress.models.language_model import BlockKwargs, LanguageModel
from evopress.models.structure import ModelStructure
from evopress.models.untokenized import untokenized
from evopress.planning.model_size import group_shapes, kinds_of_blocks, weights_with_blocks
from evopress.planning.planned_run import PlannedRun
from evopress.planning.work import Operation
from evopress.space.build import layer_space

LARGEST_WEIGHT = 0.05

ATTENTIONS = ("sdpa", "eager")
"""Attention implementations that need only torch. Any other one is timed as if it were the first."""


class Timeable(NamedTuple):
    """A function to be timed. One call does an operation `times` times."""

    call: Callable[[], object]
    times: float = 1


@dataclass(frozen=True)
class Sample:
    """A model in memory, or a model with random weights in which all blocks of a kind are the same block."""

    run: PlannedRun
    lm: LanguageModel

    @cached_property
    def compressible(self) -> CompressibleModel:
        compress = self.run.job.compress
        assert isinstance(compress, Compressor)
        space = layer_space(self.lm, compress.for_hidden_size(self.lm.hidden_size), self.run.job.space)
        return CompressibleModel(self.lm, space, DenseAtEveryLevel(self.lm))

    def kwargs(self, operation: Operation) -> list[BlockKwargs]:
        """The arguments that the model passes to each block for the windows of an operation."""
        tokens = torch.zeros(1, operation.length, dtype=torch.long, device=self.lm.device)
        return self.lm.embed(tokens)[1]

    def states(self, operation: Operation) -> Tensor:
        """Random hidden states (windows, length, hidden) for the tokens of an operation."""
        shape = (operation.windows, operation.length, self.lm.hidden_size)
        return torch.randn(shape, device=self.lm.device, dtype=self.lm.dtype)


class DenseAtEveryLevel:
    """Returns the dense weight of a layer for each of its levels. Products with it take the same time."""

    def __init__(self, lm: LanguageModel):
        self.lm = lm

    def get(self, block: int, layer: str, level: int) -> Tensor:
        return self.lm.model.get_submodule(layer).get_parameter("weight")


def sample_of(run: PlannedRun) -> Sample:
    """The sample of a planned run, or the model itself if it is already in memory."""
    if isinstance(run.job.model, LanguageModel):
        return Sample(run, run.job.model)
    attention = run.job.model.attention if run.job.model.attention in ATTENTIONS else ATTENTIONS[0]
    return Sample(run, random_model(run.model, dtype=run.dtype, device=run.device, attention=attention))


def sample_bytes(run: PlannedRun) -> int:
    """Bytes of memory for the sample of a planned run and the Hessians of one of its blocks."""
    kinds = kinds_of_blocks(run.model)
    squares = [sum(cols**2 for _, cols in group_shapes(run.model, block)) for block in kinds]
    hessians = 4 * max(squares) * run.needs_hessians
    if isinstance(run.job.model, LanguageModel):
        return hessians
    return hessians + weights_with_blocks(run.model, kinds) * run.dtype.itemsize


def random_model(
    structure: ModelStructure, *, dtype: torch.dtype, device: torch.device, attention: str = ATTENTIONS[0]
) -> LanguageModel:
    """The model in the given type and on the given device, with one block for all blocks of the same kind.

    The blocks, the last norm and the head have random weights. The embeddings are uninitialised and buffers are zero,
    which changes the results of a block but not its speed.
    """
    model = deepcopy(structure.model).to(dtype)  # type: ignore[arg-type]
    blocks = list(model.get_submodule(structure.family.blocks).children())
    blocks = [blocks[first] for first in structure.alike]
    model.set_submodule(structure.family.blocks, ModuleList(blocks))
    with suppress(ValueError):  # some models support only the implementation that they already have
        model.set_attn_implementation(attention)
    model.to_empty(device=device)
    head, norm = (model.get_submodule(path) for path in (structure.family.head, structure.family.norm))
    with torch.no_grad():
        for parameter in chain(*(part.parameters() for part in {*blocks, head, norm})):
            parameter.uniform_(-LARGEST_WEIGHT, LARGEST_WEIGHT)
        for buffer in model.buffers():
            buffer.zero_()
    model.eval().requires_grad_(False)
    return untokenized(ModelStructure(model=model, family=structure.family, name=structure.name))
