"""Layers swept to block types of GGUF files."""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from evopress.compressors.base import LayerGroup
from evopress.compressors.group_rounder import GroupRounder
from evopress.compressors.scalars import fetch_scalars
from evopress.compressors.sweep import by_level, lanes_of, split_levels, sweep
from evopress.weights.block_grids import BLOCK, TYPES, fit_blocks
from evopress.weights.ggml import GgmlWeight, num_clipped_blocks


def sweep_to_types(
    rows: Tensor, names: Sequence[str], *, U: Tensor, num_rows: list[int]
) -> tuple[list[list[GgmlWeight]], list[Tensor]]:
    """Rows (rows, cols) of all layers, which have `num_rows` each, at the types `names`, by GPTQ.

    Returns the levels of each layer, in the order of `names`, and Σ E² of each layer, (types,).
    """
    if not names:
        return [[] for _ in num_rows], [rows.new_empty(0) for _ in num_rows]
    parts = [_sweep(rows, part, U) for part in split_levels(names, rows)]
    data = [of_type.split(num_rows) for part, _ in parts for of_type in part]
    levels = [
        [GgmlWeight(of_type[layer].clone(), name) for name, of_type in zip(names, data, strict=True)]
        for layer in range(len(num_rows))
    ]
    losses = torch.cat([loss for _, loss in parts]).split(num_rows, 1)
    return levels, [loss.sum(1) for loss in losses]


def _sweep(rows: Tensor, names: Sequence[str], U: Tensor) -> tuple[list[Tensor], Tensor]:
    """The bytes of the rows at each type, (rows, bytes), and Σ E², (types, rows)."""
    W = lanes_of(rows, len(names))
    rounder = GroupRounder(
        partial(fit_blocks, types=[TYPES[name] for name in names]),
        BLOCK,
        codes=torch.empty_like(W, dtype=torch.int8),
        order=torch.arange(len(W), device=W.device),
        places=range(len(W)),
    )
    loss = sweep(W, U, columns=rounder, block_size=BLOCK).square_().sum(0)
    parts = (
        rounder.codes,
        torch.stack([grid.scale for grid in rounder.grids]),
        torch.stack([grid.offset for grid in rounder.grids]),
    )
    by_type = zip(names, *(by_level(part, len(names)) for part in parts), strict=True)
    data = [
        GgmlWeight.from_codes(codes, scales, offsets=offsets, type_name=name).data
        for name, codes, scales, offsets in by_type
    ]
    return data, by_level(loss, len(names))


def clipping_notes(group: LayerGroup, levels: Sequence[Sequence[GgmlWeight]]) -> Iterator[str]:
    """A note on each layer with blocks of weights that some type cannot represent, even roughly."""
    counts = iter(
        fetch_scalars(
            *(
                num_clipped_blocks(weight, level)
                for weight, layer_levels in zip(group.weights, levels, strict=True)
                for level in layer_levels
            )
        )
    )
    for name, layer_levels in zip(group.names, levels, strict=True):
        clipped = [(level.type_name, count) for level, count in zip(layer_levels, counts, strict=False) if count]
        if clipped:
            blocks = ", ".join(f"{count:.0f} blocks of {kind}" for kind, count in clipped)
            yield (
                f"{name}: {blocks} are beyond the reach of their float16 scales and clipped; "
                "use compress=gptq compress.scale_dtype=float32, or export.formats=[hf]"
            )
