"""Fills a database block by block: each block is calibrated on the outputs of the compressed blocks before it.

::

    X ← embeddings of the calibration windows
    for each block:
        run it dense on X, summing one Hessian per group of layers that read the same input
        solve every group at all levels; write the block
        X ← the block's outputs with its layers at the propagated level
    where the compressor takes embeddings and head: solve them, the head with the Hessian of the normed X

The embeddings stay dense in all this. They have no Hessian: a row is used as it is or not at all, so theirs is the unit
matrix, with which rounding to nearest is best. Embeddings that are the head's weight too get the head's Hessian.

With several processes, each takes its share of the windows and of the groups, and the first one writes. The bytes are
those that one process writes. What float rounding does to a code feeds on itself (Hessians summed in another order
change 0.01 % of the codes in the first block of the tiny model and 8 % in the last), so the windows are cut into
`CHUNKS` whatever the number of processes; each has its own Hessian, and these are added up in the order of the chunks.

Source: arXiv 2210.17323, Section 3.3 (GPTQ processes blocks in sequence); arXiv 2410.14649, Appendix A.
"""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from math import inf
from pathlib import Path

import torch
from torch import Tensor

from evopress.compressors.base import CompressedGroup, Compressor, LayerGroup
from evopress.compressors.linalg import RunningHessian, scalars, towards_identity
from evopress.database.store import BlockLevels, Database
from evopress.models.hooks import watch_layers
from evopress.models.language_model import LanguageModel
from evopress.models.state_storage import allocate_states
from evopress.runtime import distributed, signals
from evopress.runtime.progress import progress
from evopress.space.shapes import LayerShape
from evopress.space.units import OUTSIDE
from evopress.weights.base import CompressedWeight

log = logging.getLogger(__name__)

Group = tuple[str, ...]
"""Full names of layers that read the same input."""

NOTES_SHOWN = 50
"""Remarks of compressors that are logged; hundreds of experts may each have one."""

CHUNKS = 16
"""Parts of the calibration windows whose Hessians are summed apart; as many processes at most share the windows."""


def build(
    lm: LanguageModel,
    compressor: Compressor,
    windows: Tensor,
    database: Database,
    *,
    batch_tokens: int,
    states_gb: float = inf,
) -> None:
    """Complete `database` from calibration `windows` (windows, time), `batch_tokens` at a time.

    Hidden states of more than `states_gb` are kept in a file beside the database. Waits for another process that builds
    the same database, and then finds it complete.
    """
    with database.lock() if distributed.is_first() else nullcontext():
        distributed.barrier()  # the first process holds the lock for all
        database.refresh()
        if database.blocks.keys() >= set(wanted(lm, compressor)):
            log.info("database %s is complete", database.folder)
            return
        log.info("building database %s, %d of %d blocks done", database.folder, len(database.blocks), lm.num_blocks)
        _build_missing(lm, compressor, windows, database, batch_tokens, states_gb)
        distributed.barrier()
        database.refresh()  # what the first process wrote is news to the others
    for note in database.notes[:NOTES_SHOWN]:
        log.warning("%s", note)
    if len(database.notes) > NOTES_SHOWN:
        log.warning("and %d more of these, in %s", len(database.notes) - NOTES_SHOWN, database.manifest_path)


def wanted(lm: LanguageModel, compressor: Compressor) -> tuple[int, ...]:
    """What a complete database holds, in the order in which it is built."""
    return (*range(lm.num_blocks), *((OUTSIDE,) if compressor.compresses_embeddings else ()))


@torch.no_grad()
def _build_missing(
    lm: LanguageModel, compressor: Compressor, windows: Tensor, database: Database, batch_tokens: int, states_gb: float
) -> None:
    """The write of a block overlaps the solves of the next."""
    steps = wanted(lm, compressor)
    missing = distributed.from_first(lambda: set(steps) - database.blocks.keys())
    last = max(step for step, block in enumerate(steps) if block in missing)
    stream = _Stream(lm, windows, batch_tokens, states_gb, database.folder) if compressor.needs_hessian else None
    pending: Future | None = None
    with ThreadPoolExecutor(max_workers=1) as writer:
        for step in progress(range(last + 1), desc="database", unit="block"):
            signals.raise_if_interrupted()
            block = steps[step]
            solved = _solve(lm, compressor, stream, block) if block in missing else None
            finished = _whole_block(solved) if solved is not None else None
            if stream and step < last:
                stream.advance(block, _propagated(lm, compressor, database, block, solved))
            if pending:
                pending.result()
            if finished:
                pending = writer.submit(database.put, block, finished)
                log.debug("block %d solved", block)
        if pending:
            pending.result()


class _Stream:
    """The hidden states of this process's calibration windows on their way through the model."""

    def __init__(self, lm: LanguageModel, windows: Tensor, batch_tokens: int, states_gb: float, folder: Path):
        self.lm = lm
        batches = windows.split(max(1, batch_tokens // windows.shape[1]))
        self.num_tokens = windows.numel()
        self.num_chunks = min(CHUNKS, len(batches))
        chunks = range(distributed.rank(), self.num_chunks, distributed.world_size())
        own = [(chunk, part) for chunk in chunks for part in distributed.share_of(batches, chunk, self.num_chunks)]
        first, self.kwargs = lm.embed(windows[:1].to(lm.device))
        shape = (sum(len(part) for _, part in own), *first.shape[1:])
        states = allocate_states(shape, first.dtype, device=lm.device, limit_bytes=states_gb * 1e9, folder=folder)
        self.hidden: dict[int, list[Tensor]] = {chunk: [] for chunk in chunks}
        for (chunk, part), place in zip(own, states.split([len(part) for _, part in own]), strict=True):
            self.hidden[chunk].append(place.copy_(lm.embed(part.to(lm.device))[0]))

    def hessians(self, block: int) -> dict[Group, RunningHessian]:
        """Run a dense block; one Hessian (cols, cols) over the windows of all processes per group that is ours.

        The processes take neighbouring chunks at a time and deliver them in order to the one that solves the group.
        """
        groups = _groups(self.lm, block)
        totals = self._empty(distributed.share(groups))
        for first in range(0, self.num_chunks, distributed.world_size()):
            running = self._empty(groups)
            batches = self.hidden.get(first + distributed.rank(), [])
            if block == OUTSIDE:
                for hidden in batches:
                    running[groups[-1]].update(self.lm.final_norm(hidden.to(self.lm.device)).flatten(0, -2))
            else:
                with _watching(self.lm, running):
                    for hidden in batches:
                        self.lm.run_block(block, hidden.to(self.lm.device), self.kwargs[block])
            _deliver(running, totals)
        return totals

    def _empty(self, groups: Sequence[Group]) -> dict[Group, RunningHessian]:
        return {group: RunningHessian(_shape(self.lm, group[0]).cols, device=self.lm.device) for group in groups}

    def advance(self, block: int, weights: Mapping[str, Tensor]) -> None:
        """Replace the hidden states by the outputs of the block with `weights`."""
        for batches in self.hidden.values():
            for hidden in batches:
                hidden.copy_(self.lm.run_block(block, hidden.to(self.lm.device), self.kwargs[block], weights=weights))


def _watching(lm: LanguageModel, running: Mapping[Group, RunningHessian]) -> AbstractContextManager[None]:
    """While open, what enters the first layer of each group is added to the group's Hessian."""
    layers = {group: lm.model.get_submodule(group[0]) for group in running}
    return watch_layers(layers, lambda group, inputs, _: running[group].update(inputs.flatten(0, -2)))


def _deliver(running: Mapping[Group, RunningHessian], totals: Mapping[Group, RunningHessian]) -> None:
    """Merge what each process summed up of a group, in their order, into the total of the one that solves it."""
    counts = distributed.gather([hessian.num_tokens for hessian in running.values()])
    groups = list(running)
    for target in range(distributed.world_size()):
        for group in distributed.share_of(groups, target, distributed.world_size()):
            for source, of_source in enumerate(counts):
                num_tokens = of_source[groups.index(group)]
                mean = distributed.deliver(running[group].mean, source=source, target=target) if num_tokens else None
                if mean is not None:
                    totals[group].merge(mean, num_tokens)


def _groups(lm: LanguageModel, block: int) -> list[Group]:
    """Full names of the layers of a block that share an input; each end of the model is a group of its own."""
    if block == OUTSIDE:
        return [(name,) for name in lm.embedding_and_head]
    return [tuple(lm.layer_name(block, local) for local in group) for group in lm.layer_groups]


def _solve(
    lm: LanguageModel, compressor: Compressor, stream: _Stream | None, block: int
) -> dict[Group, CompressedGroup]:
    """The groups of a block that are this process's to solve."""
    hessians = stream.hessians(block) if stream else {}
    _check_inputs(hessians)
    solved = {}
    for names in distributed.share(_groups(lm, block)):
        weights = tuple(
            lm.model.get_submodule(name).get_parameter("weight").to(lm.device, torch.float32) for name in names
        )
        hessian, notes = _calibrated(names, hessians.pop(names), stream.num_tokens) if stream else (None, ())
        if hessian is not None and names == (lm.embeddings_name,) != (lm.embedding_and_head[-1],):
            hessian, notes = torch.eye(len(hessian), device=lm.device), ()
        found = compressor.compress(LayerGroup(names, weights, hessian))
        solved[names] = replace(found, notes=(*notes, *found.notes))
    _check_levels(solved)
    return solved if distributed.world_size() == 1 else {group: _on_cpu(part) for group, part in solved.items()}


def _calibrated(names: tuple[str, ...], hessian: RunningHessian, all_tokens: int) -> tuple[Tensor, tuple[str, ...]]:
    """The Hessian that a group is solved with, and remarks.

    Layers of an expert that saw fewer tokens than they have inputs get the identity for what is missing: without any
    token they are compressed as if all inputs mattered alike (plain rounding, magnitudes).
    """
    mean, cols = hessian.result(), len(hessian.mean)
    if hessian.num_tokens >= min(cols, all_tokens):
        return mean, ()
    share = hessian.num_tokens / cols
    note = f"{hessian.num_tokens} tokens were routed to {names[0]}, which has {cols} inputs: {1 - share:.0%} of its"
    return towards_identity(mean, share), (f"{note} Hessian is the identity; raise data.calibration_tokens",)


def _check_inputs(hessians: Mapping[Group, RunningHessian]) -> None:
    """All groups of a block at once, so that a GPU is waited for once."""
    for names, is_finite in zip(hessians, scalars(*(each.is_finite() for each in hessians.values())), strict=True):
        if not is_finite:
            raise ValueError(
                f"the calibration inputs of {names[0]} are not finite: check the dense model, or load it in a wider "
                f"type with model.dtype=float32"
            )


def _check_levels(solved: Mapping[Group, CompressedGroup]) -> None:
    """The same for what was made of them."""
    tensors = [
        (name, tensor)
        for names, of_group in solved.items()
        for name, of_layer in zip(names, of_group.levels, strict=True)
        for level in of_layer
        for tensor in level.tensors().values()
        if tensor.is_floating_point()
    ]
    are_finite = scalars(*(tensor.isfinite().all() for _, tensor in tensors))
    for (name, tensor), is_finite in zip(tensors, are_finite, strict=True):
        if not is_finite:
            raise ValueError(
                f"compressed weights of {name} are not finite in {str(tensor.dtype).removeprefix('torch.')}: set "
                f"compress.value_dtype to a wider type, or check the weights of the dense model"
            )


def _on_cpu(solved: CompressedGroup) -> CompressedGroup:
    """The same where every process can receive it."""
    levels = [[weight.to(torch.device("cpu")) for weight in of_layer] for of_layer in solved.levels]
    return replace(solved, levels=levels)


def _whole_block(solved: Mapping[Group, CompressedGroup]) -> BlockLevels | None:
    """What the first process has to write; None in the others."""
    parts = distributed.collect(solved)
    if not distributed.is_first():
        return None
    levels: dict[str, list[CompressedWeight]] = {}
    errors: dict[str, list[float]] = {}
    notes: list[str] = []
    for names, of_group in (pair for part in parts for pair in part.items()):
        levels.update(zip(names, of_group.levels, strict=True))
        errors.update(zip(names, of_group.errors, strict=True))
        notes.extend(of_group.notes)
    return BlockLevels(levels, errors, tuple(notes))


def _propagated(
    lm: LanguageModel,
    compressor: Compressor,
    database: Database,
    block: int,
    solved: Mapping[Group, CompressedGroup] | None,
) -> dict[str, Tensor]:
    """Dense weights of a block by local name at the propagated level, from memory or from the database."""
    names = [name for group in _groups(lm, block) for name in group]
    level = {name: compressor.propagate_level_of(_shape(lm, name)) for name in names}
    packed: dict[str, CompressedWeight] = {}
    if solved is None:
        packed = {name: database.read(block, name, level[name]) for name in names}
    else:
        own = {
            name: levels[level[name]]
            for group, of_group in solved.items()
            for name, levels in zip(group, of_group.levels, strict=True)
        }
        for part in distributed.gather(own):
            packed.update(part)
    prefix = len(lm.block_names[block]) + 1
    return {name[prefix:]: weight.to(lm.device).dense(lm.dtype).to(lm.device) for name, weight in packed.items()}


def _shape(lm: LanguageModel, name: str) -> LayerShape:
    return LayerShape(name, *lm.model.get_submodule(name).get_parameter("weight").shape)
