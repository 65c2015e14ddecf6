"""Calibration: the hidden states that enter each block, and the Hessians of the inputs of its layers."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from evopress.compressors.hessian import RunningHessian
from evopress.database.layer_groups import LayerNames, groups_of_block
from evopress.database.sharing import merge_hessians
from evopress.database.token_weights import TokenWeights, role, weigh_tokens
from evopress.models.hooks import watch_layers
from evopress.models.language_model import BlockKwargs, LanguageModel
from evopress.models.state_storage import StateMemory
from evopress.models.transfers import prefetched, store
from evopress.runtime import distributed
from evopress.space.shapes import layer_shape
from evopress.space.units import OUTSIDE

log = logging.getLogger(__name__)

NUM_CHUNKS = 16
"""The largest number of chunks of calibration windows. At most this many processes can share the windows."""


@dataclass(frozen=True, kw_only=True)
class CalibrationStates:
    """Hidden states of this process's calibration windows. They are the inputs of one block; `advance` moves them on.

    `batches` are hidden states (windows, time, hidden) by chunk. `kwargs` are the other arguments of each block.
    `num_chunks` is the total over all processes. `token_weights` are None if all tokens count alike.
    """

    lm: LanguageModel
    batches: Mapping[int, list[Tensor]]
    kwargs: list[BlockKwargs]
    num_chunks: int
    token_weights: TokenWeights | None = None

    def hessians(self, block: int) -> dict[LayerNames, RunningHessian]:
        """Run the dense block and sum up one Hessian (cols, cols) for each group that this process solves."""
        return self._sum_hessians(block, self._on_device)

    def advance(
        self, block: int, weights: Mapping[str, Tensor], *, then: int | None = None
    ) -> dict[LayerNames, RunningHessian]:
        """Replace the hidden states with the outputs of the block, run with `weights` (local name → dense weight).

        Returns the Hessians of block `then`, if there is one. They are summed up on the way, so that each batch is
        copied to the device once, and back once.
        """
        if then is not None:
            return self._sum_hessians(then, lambda chunk: self._advanced(block, weights, chunk))
        for chunk in self.batches:
            for _ in self._advanced(block, weights, chunk):
                pass
        return {}

    def _sum_hessians(
        self, block: int, states_of: Callable[[int], Iterable[Tensor]]
    ) -> dict[LayerNames, RunningHessian]:
        """Run the dense block on the states of each chunk, and sum up the Hessians over the windows of all processes.

        In each round, every process runs one chunk. Then the Hessians of these chunks are sent to the process that
        solves the group, which adds them in order.
        """
        groups = groups_of_block(self.lm, block)
        totals = self.zero_hessians(distributed.share(groups))
        for first_chunk in range(0, self.num_chunks, distributed.world_size()):
            hessians = self.zero_hessians(groups)
            chunk = first_chunk + distributed.rank()
            self.add_inputs(hessians, block, chunk, states_of(chunk))
            merge_hessians(hessians, totals)
        return totals

    def _on_device(self, chunk: int) -> Iterator[Tensor]:
        """The states of each batch of a chunk. A chunk of another process has none."""
        return prefetched(self.batches.get(chunk, []), self.lm.device)

    def _advanced(self, block: int, weights: Mapping[str, Tensor], chunk: int) -> Iterator[Tensor]:
        """Replace the states of a chunk, batch by batch, and yield the new ones on the device."""
        for hidden, state in zip(self.batches.get(chunk, []), self._on_device(chunk), strict=True):
            output = self.lm.run_block(block, state, self.kwargs[block], weights=weights)
            store(output, hidden)
            yield output

    def zero_hessians(self, groups: Sequence[LayerNames]) -> dict[LayerNames, RunningHessian]:
        """An empty Hessian for each of the groups."""
        lm = self.lm
        return {names: RunningHessian(layer_shape(lm, names[0]).cols, device=lm.device) for names in groups}

    def add_inputs(
        self, hessians: Mapping[LayerNames, RunningHessian], block: int, chunk: int, states: Iterable[Tensor]
    ) -> None:
        """Run the block on the `states` of a chunk, and add the inputs of each group to its Hessian.

        For `OUTSIDE`, add the inputs of the head. There, all tokens count alike.
        """
        if block == OUTSIDE:
            head = hessians[self.lm.embedding_and_head[-1:]]
            for state in states:
                head.update(self.lm.final_norm(state).flatten(0, -2))
            return
        layers = {names: self.lm.model.get_submodule(names[0]) for names in hessians}
        for index, state in enumerate(states):

            def record(names: LayerNames, inputs: Tensor, _: Tensor, index: int = index) -> None:
                hessians[names].update(inputs.flatten(0, -2), self._weights_of(names, block, chunk, index))

            with watch_layers(layers, record):
                self.lm.run_block(block, state, self.kwargs[block])

    def _weights_of(self, names: LayerNames, block: int, chunk: int, index: int) -> Tensor | None:
        """The weights of the tokens that a group sees. Experts see only the tokens that are routed to them."""
        if self.token_weights is None:
            return None
        local = names[0].removeprefix(f"{self.lm.block_names[block]}.")
        weights = self.token_weights[chunk][index][block][role(local)]
        positions = self.lm.routed_tokens(block, local)
        return weights if positions is None else weights[positions]


def embed_windows(
    lm: LanguageModel, windows: Tensor, *, batch_tokens: int, states_gb: float, folder: Path, with_weights: bool = False
) -> CalibrationStates:
    """The states of `windows` (windows, time) at the first block, in batches of about `batch_tokens` tokens.

    With n processes, each embeds every n-th chunk. States beyond `states_gb` GB are kept in files in `folder`.
    `with_weights` weighs the tokens as well.
    """
    windows_per_batch = max(1, batch_tokens // windows.shape[1])
    all_batches = windows.split(windows_per_batch)
    num_chunks = min(NUM_CHUNKS, len(all_batches))
    chunks = range(distributed.rank(), num_chunks, distributed.world_size())
    tokens_of = {chunk: distributed.share_of(all_batches, chunk, num_chunks) for chunk in chunks}
    _, kwargs = lm.embed(windows[:1].to(lm.device))
    places = [(chunk, tokens) for chunk, batches_of_tokens in tokens_of.items() for tokens in batches_of_tokens]
    memory = StateMemory(states_gb * 1e9, folder)
    states = memory.keep(lm.embed(tokens.to(lm.device))[0] for _, tokens in places)
    batches: dict[int, list[Tensor]] = {chunk: [] for chunk in chunks}
    for (chunk, _), hidden in zip(places, states, strict=True):
        batches[chunk].append(hidden)
    _log_size(states, memory)
    all_uniforms = torch.rand(windows.shape, generator=torch.Generator().manual_seed(0)).split(windows_per_batch)
    uniforms = {chunk: distributed.share_of(all_uniforms, chunk, num_chunks) for chunk in chunks}
    return CalibrationStates(
        lm=lm,
        batches=batches,
        kwargs=kwargs,
        num_chunks=num_chunks,
        token_weights=weigh_tokens(lm, batches, kwargs, uniforms) if with_weights else None,
    )


def _log_size(states: Sequence[Tensor], memory: StateMemory) -> None:
    excess = sum(hidden.nbytes for hidden in states) - memory.limit_bytes
    if excess > 0:
        log.info(
            "%.1f GB of hidden states exceed evaluator.states_gb and are in files in %s", excess / 1e9, memory.folder
        )
