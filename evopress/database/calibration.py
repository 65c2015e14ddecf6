"""Calibration: the hidden states that enter each block, and the Hessians of the inputs of its layers."""

from collections.abc import Mapping, Sequence
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
from evopress.models.state_storage import allocate_states
from evopress.runtime import distributed
from evopress.space.shapes import layer_shape
from evopress.space.units import OUTSIDE

NUM_CHUNKS = 16
"""The largest number of chunks of calibration windows. At most this many processes can share the windows."""


@dataclass(frozen=True, kw_only=True)
class CalibrationStates:
    """Hidden states of this process's calibration windows. They are the inputs of one block; `advance` moves them on.

    `batches` are hidden states (windows, time, hidden) by chunk. `kwargs` are the other arguments of each block.
    `num_chunks` and `num_tokens` are totals over all processes. `token_weights` are None if all tokens count alike.
    """

    lm: LanguageModel
    batches: Mapping[int, list[Tensor]]
    kwargs: list[BlockKwargs]
    num_chunks: int
    num_tokens: int
    token_weights: TokenWeights | None = None

    def hessians(self, block: int) -> dict[LayerNames, RunningHessian]:
        """Run the dense block and sum up one Hessian (cols, cols) for each group that this process solves.

        The sums are over the windows of all processes. In each round, every process runs one chunk. Then the Hessians
        of these chunks are sent to the process that solves the group, which adds them in order.
        """
        groups = groups_of_block(self.lm, block)
        totals = self.zero_hessians(distributed.share(groups))
        for first_chunk in range(0, self.num_chunks, distributed.world_size()):
            hessians = self.zero_hessians(groups)
            self.add_inputs(hessians, block, first_chunk + distributed.rank())
            merge_hessians(hessians, totals)
        return totals

    def zero_hessians(self, groups: Sequence[LayerNames]) -> dict[LayerNames, RunningHessian]:
        """An empty Hessian for each of the groups."""
        lm = self.lm
        return {names: RunningHessian(layer_shape(lm, names[0]).cols, device=lm.device) for names in groups}

    def add_inputs(self, hessians: Mapping[LayerNames, RunningHessian], block: int, chunk: int) -> None:
        """Run the block on a chunk, and add the inputs of each group to its Hessian.

        For `OUTSIDE`, add the inputs of the head. There, all tokens count alike.
        """
        batches = self.batches.get(chunk, [])
        if block == OUTSIDE:
            head = hessians[self.lm.embedding_and_head[-1:]]
            for hidden in batches:
                head.update(self.lm.final_norm(hidden.to(self.lm.device)).flatten(0, -2))
            return
        layers = {names: self.lm.model.get_submodule(names[0]) for names in hessians}
        for index, hidden in enumerate(batches):

            def record(names: LayerNames, inputs: Tensor, _: Tensor, index: int = index) -> None:
                hessians[names].update(inputs.flatten(0, -2), self._weights_of(names, block, chunk, index))

            with watch_layers(layers, record):
                self.lm.run_block(block, hidden.to(self.lm.device), self.kwargs[block])

    def _weights_of(self, names: LayerNames, block: int, chunk: int, index: int) -> Tensor | None:
        """The weights of the tokens that a group sees. Experts see only the tokens that are routed to them."""
        if self.token_weights is None:
            return None
        local = names[0].removeprefix(f"{self.lm.block_names[block]}.")
        weights = self.token_weights[chunk][index][block][role(local)]
        positions = self.lm.routed_tokens(block, local)
        return weights if positions is None else weights[positions]

    def advance(self, block: int, weights: Mapping[str, Tensor]) -> None:
        """Replace the hidden states with the outputs of the block, run with `weights` (local name → dense weight)."""
        for batches in self.batches.values():
            for hidden in batches:
                hidden.copy_(self.lm.run_block(block, hidden.to(self.lm.device), self.kwargs[block], weights=weights))


def embed_windows(
    lm: LanguageModel, windows: Tensor, *, batch_tokens: int, states_gb: float, folder: Path, with_weights: bool = False
) -> CalibrationStates:
    """The states of `windows` (windows, time) at the first block, in batches of about `batch_tokens` tokens.

    With n processes, each embeds every n-th chunk. States of more than `states_gb` GB are kept in a file in `folder`.
    `with_weights` weighs the tokens as well.
    """
    windows_per_batch = max(1, batch_tokens // windows.shape[1])
    all_batches = windows.split(windows_per_batch)
    num_chunks = min(NUM_CHUNKS, len(all_batches))
    chunks = range(distributed.rank(), num_chunks, distributed.world_size())
    tokens_of = {chunk: distributed.share_of(all_batches, chunk, num_chunks) for chunk in chunks}
    num_windows = sum(len(tokens) for batches in tokens_of.values() for tokens in batches)
    first, kwargs = lm.embed(windows[:1].to(lm.device))
    states = allocate_states(
        (num_windows, *first.shape[1:]), first.dtype, device=lm.device, limit_bytes=states_gb * 1e9, folder=folder
    )
    batches: dict[int, list[Tensor]] = {chunk: [] for chunk in chunks}
    start = 0
    for chunk, batches_of_tokens in tokens_of.items():
        for tokens in batches_of_tokens:
            hidden = states[start : start + len(tokens)]
            batches[chunk].append(hidden.copy_(lm.embed(tokens.to(lm.device))[0]))
            start += len(tokens)
    all_uniforms = torch.rand(windows.shape, generator=torch.Generator().manual_seed(0)).split(windows_per_batch)
    uniforms = {chunk: distributed.share_of(all_uniforms, chunk, num_chunks) for chunk in chunks}
    return CalibrationStates(
        lm=lm,
        batches=batches,
        kwargs=kwargs,
        num_chunks=num_chunks,
        num_tokens=windows.numel(),
        token_weights=weigh_tokens(lm, batches, kwargs, uniforms) if with_weights else None,
    )
