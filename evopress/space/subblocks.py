"""Sub-blocks that can be dropped as a whole: the attention and the MLP of a block."""

from collections.abc import Sequence
from typing import Literal

from evopress.space.shapes import BlockShape
from evopress.space.units import Level, Unit

SUBBLOCKS = ("attention", "mlp")

Granularity = Literal["subblock", "block", "pair"]
"""What is dropped at once: an attention or an MLP, a block, or two consecutive blocks."""


def droppable_units(
    blocks: Sequence[BlockShape],
    granularity: Granularity,
    *,
    keep_attention: Sequence[int] = (),
    keep_mlp: Sequence[int] = (),
) -> list[Unit]:
    """One unit per sub-block, block or pair of blocks, in block order; each is kept (cost 1) or dropped (cost 0).

    `keep_attention` and `keep_mlp` list the blocks whose attention or MLP must stay. A unit that contains one of these
    has the single level `kept`.

    Raises:
        ValueError: A block to keep does not exist, or the blocks cannot be paired.
    """
    for key, kept in (("keep_attention", keep_attention), ("keep_mlp", keep_mlp)):
        outside = [block for block in kept if not 0 <= block < len(blocks)]
        if outside:
            raise ValueError(f"compress.{key} names block {outside[0]}, but blocks are 0 to {len(blocks) - 1}")
    must_stay = {(block, "attention") for block in keep_attention} | {(block, "mlp") for block in keep_mlp}
    if granularity == "subblock":
        return [_unit(blocks, (block,), kind, must_stay) for block in range(len(blocks)) for kind in SUBBLOCKS]
    stride = 2 if granularity == "pair" else 1
    if len(blocks) % stride:
        raise ValueError(f"compress.granularity=pair needs an even number of blocks, not {len(blocks)}: use block")
    return [
        _unit(blocks, tuple(range(first, first + stride)), "block", must_stay)
        for first in range(0, len(blocks), stride)
    ]


def _unit(blocks: Sequence[BlockShape], members: tuple[int, ...], kind: str, must_stay: set[tuple[int, str]]) -> Unit:
    subblocks = SUBBLOCKS if kind == "block" else (kind,)
    num_weights = sum(getattr(blocks[block], subblock) for block in members for subblock in subblocks)
    kept = Level(label="kept", value=0, cost=1, size_bytes=2 * num_weights)
    dropped = Level(label="dropped", value=1, cost=0, size_bytes=0)
    stays = any((block, subblock) in must_stay for block in members for subblock in subblocks)
    return Unit(
        name="+".join(f"{blocks[block].name}.{kind}" for block in members),
        blocks=members,
        kind=kind,
        layers=(),
        num_weights=num_weights,
        levels=(kept,) if stays else (kept, dropped),
        trade_group=kind,
    )


def subblocks_of(unit: Unit) -> tuple[str, ...]:
    """The sub-blocks, of each of its blocks, that a unit without layers consists of."""
    return SUBBLOCKS if unit.kind == "block" else (unit.kind,)
