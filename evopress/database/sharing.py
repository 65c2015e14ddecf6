"""What the processes of a build exchange: Hessians before the groups are solved, compressed groups afterwards."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import chain

import torch

from evopress.compressors.base import CompressedGroup
from evopress.compressors.hessian import RunningHessian
from evopress.database.layer_groups import LayerNames
from evopress.database.store import BlockLevels
from evopress.runtime import distributed
from evopress.weights.base import CompressedWeight

CompressedGroups = Mapping[LayerNames, CompressedGroup]
"""The groups of a block that one process solved, by the names of their layers."""


def merge_hessians(hessians: Mapping[LayerNames, RunningHessian], totals: Mapping[LayerNames, RunningHessian]) -> None:
    """Add the Hessians of all processes to the totals, in the order of the processes.

    `hessians` has all groups of the block. `totals` has only the groups that this process solves.
    """
    groups = list(hessians)
    counts = distributed.gather([hessian.num_tokens for hessian in hessians.values()])
    for target in range(distributed.world_size()):
        for names in distributed.share_of(groups, target, distributed.world_size()):
            for source, counts_of_source in enumerate(counts):
                num_tokens = counts_of_source[groups.index(names)]
                if not num_tokens:
                    continue
                mean = distributed.deliver(hessians[names].mean, source=source, target=target)
                if mean is not None:
                    totals[names].merge(mean, num_tokens)


def collect_block(compressed: CompressedGroups) -> BlockLevels | None:
    """All groups of a block, in the first process. None in the others."""
    parts = distributed.collect(compressed)
    if not distributed.is_first():
        return None
    levels: dict[str, list[CompressedWeight]] = {}
    errors: dict[str, list[float]] = {}
    notes: list[str] = []
    for names, group in chain.from_iterable(part.items() for part in parts):
        levels.update(zip(names, group.levels, strict=True))
        errors.update(zip(names, group.errors, strict=True))
        notes.extend(group.notes)
    return BlockLevels(levels, errors, tuple(notes))


def gather_levels(compressed: CompressedGroups, level_of: Mapping[str, int]) -> dict[str, CompressedWeight]:
    """One level of every layer of a block. Every process gets the weights of all processes."""
    weights = {
        name: levels[level_of[name]]
        for names, group in compressed.items()
        for name, levels in zip(names, group.levels, strict=True)
    }
    return {name: weight for part in distributed.gather(weights) for name, weight in part.items()}


def sendable(compressed: CompressedGroups) -> CompressedGroups:
    """The groups, with their tensors on the CPU if there are other processes. These cannot receive them from a GPU."""
    if distributed.world_size() == 1:
        return compressed
    return {names: _on_cpu(group) for names, group in compressed.items()}


def _on_cpu(group: CompressedGroup) -> CompressedGroup:
    cpu = torch.device("cpu")
    return replace(group, levels=[[weight.to(cpu) for weight in weights] for weights in group.levels])
