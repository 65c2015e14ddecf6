"""The hidden states of the dense and of the compressed model on the same calibration windows, block by block."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from evopress.evaluation.context import EvaluationContext
from evopress.models.language_model import BlockKwargs
from evopress.models.state_storage import allocate_states
from evopress.space.choices import BlockChoice
from evopress.tuning.block_rounding import BlockTask, Weights
from evopress.tuning.settings import num_held_out
from evopress.tuning.task import TuningTask


@dataclass(frozen=True)
class CalibrationPair:
    """States (windows, time, hidden) before a block; `advance_dense` and `advance_compressed` overwrite them.

    `choices` and `kwargs` have the levels and the other arguments of each block.
    """

    context: EvaluationContext
    choices: list[BlockChoice]
    kwargs: list[BlockKwargs]
    dense: Tensor
    compressed: Tensor
    windows_at_once: int

    def block_task(self, block: int) -> BlockTask:
        """The block, from the compressed states before it to the dense states after it. Call `advance_dense` first."""
        return BlockTask(
            lm=self.context.lm,
            block=block,
            choice=self.choices[block],
            kwargs=self.kwargs[block],
            inputs=self.compressed,
            targets=self.dense,
            num_held_out=num_held_out(len(self.dense)),
            windows_at_once=self.windows_at_once,
        )

    def stored_weights(self, block: int) -> Weights:
        """The levels of a block, packed, by local name."""
        weights, lm = self.context.evaluator.weights, self.context.lm
        if weights is None:
            return {}
        levels = self.choices[block].levels
        return {local: weights.database.read(block, lm.layer_name(block, local), level) for local, level in levels}

    @torch.no_grad()
    def advance_dense(self, block: int) -> None:
        """Replace the dense states by those after the block."""
        for states in self._parts(self.dense):
            states.copy_(self.context.lm.run_block(block, states.to(self.context.lm.device), self.kwargs[block]))

    @torch.no_grad()
    def advance_compressed(self, block: int, packed: Weights) -> None:
        """Replace the compressed states by those after the block with these weights."""
        lm, dropped = self.context.lm, self.choices[block].dropped
        weights = {local: weight.to(lm.device).dense(lm.dtype) for local, weight in packed.items()}
        for states in self._parts(self.compressed):
            inputs = states.to(lm.device)
            states.copy_(lm.run_block(block, inputs, self.kwargs[block], weights=weights, dropped=dropped))

    def _parts(self, states: Tensor) -> Iterator[Tensor]:
        yield from states.split(self.windows_at_once)


@torch.no_grad()
def calibration_pair(task: TuningTask) -> CalibrationPair:
    """The states before the first block. If they need more than the memory for states, they are in files."""
    context, settings = task.context, task.context.evaluator.settings
    lm = context.lm
    windows = task.windows("calibration")
    tokens = windows[: task.settings.num_resolve_windows(len(windows))]
    model = context.evaluator.compressible
    windows_at_once = max(1, settings.batch_tokens // tokens.shape[1])
    _, kwargs = lm.embed(tokens[:1].to(lm.device))
    embeddings = model.embedding_and_head(task.profile).embeddings
    shape = (*tokens.shape, lm.hidden_size)

    def embedded(weight: Tensor | None) -> Tensor:
        limit = settings.states_gb * 1e9 / 2
        states = allocate_states(shape, lm.dtype, device=lm.device, limit_bytes=limit, folder=task.path.parent)
        for part, part_tokens in zip(states.split(windows_at_once), tokens.split(windows_at_once), strict=True):
            part.copy_(lm.embed(part_tokens.to(lm.device), weight)[0])
        return states

    return CalibrationPair(
        context=context,
        choices=model.choices(task.profile),
        kwargs=kwargs,
        dense=embedded(None),
        compressed=embedded(embeddings),
        windows_at_once=windows_at_once,
    )
