"""One block of a model with random weights, on which the speed of a machine is measured before the model is loaded."""

from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import NamedTuple

import torch
from tokenizers import Tokenizer, models
from torch import Tensor
from torch.nn import ModuleList
from transformers import PreTrainedTokenizerFast

from evopress.compressors.base import Compressor
from evopress.evaluation.compressible_model import CompressibleModel
from evopress.models.language_model import BlockKwargs, LanguageModel
from evopress.models.structure import ModelStructure
from evopress.planning.model_size import group_shapes, resident_weights
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
    """The first block, the head and the embeddings of a model."""

    run: PlannedRun
    lm: LanguageModel

    @cached_property
    def compressible(self) -> CompressibleModel:
        compress = self.run.job.compress
        assert isinstance(compress, Compressor)
        space = layer_space(self.lm, compress.for_hidden_size(self.lm.hidden_size), self.run.job.space)
        return CompressibleModel(self.lm, space, DenseAtEveryLevel(self.lm))

    def kwargs(self, length: int) -> BlockKwargs:
        """The arguments that the model passes to its first block for windows of this length."""
        tokens = torch.zeros(1, length, dtype=torch.long, device=self.lm.device)
        return self.lm.embed(tokens)[1][0]

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
    return Sample(run, random_block(run.model, dtype=run.dtype, device=run.device, attention=attention))


def sample_bytes(run: PlannedRun) -> int:
    """Bytes of memory for the sample of a planned run and the Hessians of its block."""
    hessians = 4 * sum(cols**2 for _, cols in group_shapes(run.model)) * run.needs_hessians
    if isinstance(run.job.model, LanguageModel):
        return hessians
    return hessians + resident_weights(run.model, offload=True) * run.dtype.itemsize


def random_block(
    structure: ModelStructure, *, dtype: torch.dtype, device: torch.device, attention: str = ATTENTIONS[0]
) -> LanguageModel:
    """The model with only its first block, in the given type and on the given device.

    The block, the last norm and the head have random weights. The embeddings are uninitialised and buffers are zero,
    which changes the results of a block but not its speed.
    """
    model = deepcopy(structure.model).to(dtype)  # type: ignore[arg-type]
    first_block = next(model.get_submodule(structure.family.blocks).children())
    model.set_submodule(structure.family.blocks, ModuleList([first_block]))
    with suppress(ValueError):  # some models support only the implementation that they already have
        model.set_attn_implementation(attention)
    model.to_empty(device=device)
    head, norm = (model.get_submodule(path) for path in (structure.family.head, structure.family.norm))
    with torch.no_grad():
        for parameter in chain(first_block.parameters(), head.parameters(), norm.parameters()):
            parameter.uniform_(-LARGEST_WEIGHT, LARGEST_WEIGHT)
        for buffer in model.buffers():
            buffer.zero_()
    model.eval().requires_grad_(False)
    empty_tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    return LanguageModel(model=model, tokenizer=empty_tokenizer, family=structure.family, name=structure.name)
