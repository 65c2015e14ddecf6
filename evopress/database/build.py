"""Fills a database block by block. Each block is calibrated on the outputs of the compressed blocks before it.

::

    X ← dense embeddings of the calibration windows
    if the compressor asks for it: weigh the tokens by gradients of the dense model
    for each block:
        run the dense block on X, and sum up the Hessian of each group of layers that read the same input
        solve every group at all levels; write the block
        X ← outputs of the block with its layers at the propagated level, in one pass with the next dense block
    if the compressor compresses embeddings and head: solve both, the head with the Hessian of the normed X

The embeddings have no Hessian, because each token only copies one row. They get the identity, for which rounding to
nearest is optimal. Embeddings that share the head's weight get the head's Hessian.

Several processes share the windows and the groups, and the first process writes. The bytes do not depend on the number
of processes. This requires a fixed order of float sums, because rounding differences grow from block to block: Hessians
summed in another order change 0.01 % of the codes in the first block of the tiny model, and 8 % in the last. So the
windows are cut into the same chunks for every number of processes, at most `NUM_CHUNKS` of them. Each chunk has its
own Hessian, and these are added in order.

Source: arXiv 2210.17323, Section 3.3 (GPTQ processes blocks in sequence); arXiv 2410.14649, Appendix A.
"""

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from evopress.compressors.base import Compressor
from evopress.compressors.hessian import RunningHessian
from evopress.database.calibration import CalibrationStates, embed_windows
from evopress.database.layer_groups import LayerNames, groups_of_block
from evopress.database.sharing import CompressedGroups, collect_block, gather_levels
from evopress.database.solve import solve_block
from evopress.database.store import Database
from evopress.models.language_model import LanguageModel
from evopress.models.structure import ModelStructure
from evopress.runtime import distributed, signals
from evopress.runtime.progress import progress
from evopress.space.shapes import layer_shape
from evopress.space.units import OUTSIDE

log = logging.getLogger(__name__)

NOTES_SHOWN = 50
"""At most this many notes are logged. Hundreds of experts may have one each."""


@dataclass(frozen=True, kw_only=True)
class BatchLimits:
    """About `batch_tokens` tokens go through a block at a time. Hidden states above `states_gb` GB are in a file."""

    batch_tokens: int
    states_gb: float = inf


def build_database(
    lm: LanguageModel,
    compressor: Compressor,
    windows: Tensor,
    database: Database,
    *,
    limits: BatchLimits,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Complete `database` with the calibration `windows` (windows, time).

    After every block, `report` is called with the number of blocks done and the total. If another process is building
    the same database, this waits until it has finished.
    """
    with database.lock() if distributed.is_first() else nullcontext():
        distributed.barrier()  # the first process holds the lock for all of them
        database.refresh()
        expected = set(expected_blocks(lm, compressor))
        if database.blocks.keys() >= expected:
            log.info("database %s is complete", database.folder)
            return
        done = len(expected & database.blocks.keys())
        log.info("building database %s, %d of %d blocks done", database.folder, done, len(expected))
        _build_missing(lm, compressor, windows, database, limits=limits, report=report)
        distributed.barrier()
        database.refresh()  # so far, only the first process knows the new blocks
    _log_notes(database)


def expected_blocks(lm: ModelStructure, compressor: Compressor) -> tuple[int, ...]:
    """The blocks of a complete database, in the order in which they are built. `OUTSIDE` is the last one, if any."""
    return (*range(lm.num_blocks), *((OUTSIDE,) if compressor.compresses_embeddings else ()))


@torch.no_grad()
def _build_missing(
    lm: LanguageModel,
    compressor: Compressor,
    windows: Tensor,
    database: Database,
    *,
    limits: BatchLimits,
    report: Callable[[int, int], None],
) -> None:
    """Build every missing block. A block is written while the next one is solved."""
    blocks = expected_blocks(lm, compressor)
    missing = distributed.from_first(lambda: set(blocks) - database.blocks.keys())
    last = max(step for step, block in enumerate(blocks) if block in missing)
    states: CalibrationStates | None = None
    hessians: dict[LayerNames, RunningHessian] = {}
    if compressor.needs_hessian:
        states = embed_windows(
            lm,
            windows,
            batch_tokens=limits.batch_tokens,
            states_gb=limits.states_gb,
            folder=database.folder,
            with_weights=compressor.needs_token_weights,
        )
        hessians = states.hessians(blocks[0]) if blocks[0] in missing else {}
    pending_write: Future | None = None
    with ThreadPoolExecutor(max_workers=1) as writer:
        for step in progress(range(last + 1), desc="database", unit="block"):
            signals.raise_if_interrupted()
            block = blocks[step]
            compressed: CompressedGroups | None = None
            following = blocks[step + 1] if step < last else OUTSIDE
            if states and following != OUTSIDE:
                lm.prefetch(following)
            if block in missing:
                compressed = solve_block(lm, compressor, block=block, hessians=hessians, num_tokens=windows.numel())
            finished = collect_block(compressed) if compressed is not None else None
            if pending_write:
                pending_write.result()
            if finished:
                pending_write = writer.submit(database.put, block, finished)
                log.debug("%d of %d blocks solved", step + 1, len(blocks))
            if states and step < last:
                weights = _propagated_weights(lm, compressor, database, block, compressed)
                hessians = states.advance(block, weights, then=following if following in missing else None)
            report(step + 1, len(blocks))
        if pending_write:
            pending_write.result()


def _propagated_weights(
    lm: LanguageModel, compressor: Compressor, database: Database, block: int, compressed: CompressedGroups | None
) -> dict[str, Tensor]:
    """Dense weights of a block (by local name) at the propagated level, just compressed or read from the database."""
    names = [name for group in groups_of_block(lm, block) for name in group]
    level_of = {name: compressor.propagate_level_of(layer_shape(lm, name)) for name in names}
    if compressed is None:
        weights = {name: database.read(block, name, level) for name, level in level_of.items()}
    else:
        weights = gather_levels(compressed, level_of)
    prefix = f"{lm.block_names[block]}."
    return {
        name.removeprefix(prefix): weight.to(lm.device).dense(lm.dtype).to(lm.device)
        for name, weight in weights.items()
    }


def _log_notes(database: Database) -> None:
    for note in database.notes[:NOTES_SHOWN]:
        log.warning("%s", note)
    if len(database.notes) > NOTES_SHOWN:
        log.warning("%d more notes are in %s", len(database.notes) - NOTES_SHOWN, database.manifest_path)
