"""Units that are kept or dropped as a whole: attentions, MLPs, blocks or pairs of blocks."""

from collections.abc import Sequence
from typing import Literal

from evopress.models.subblocks import SUBBLOCKS
from evopress.space.shapes import BlockShape
from evopress.space.units import Level, Unit

Granularity = Literal["subblock", "block", "pair"]
"""What one unit is: an attention or an MLP, a block, or two consecutive blocks."""


def droppable_units(
    blocks: Sequence[BlockShape],
    granularity: Granularity,
    *,
    keep_attention: Sequence[int] = (),
    keep_mlp: Sequence[int] = (),
) -> list[Unit]:
    """The units of a model in block order. Keeping one costs 1, dropping it costs 0.

    `keep_attention` and `keep_mlp` list the blocks whose attention or MLP must be kept. A unit that contains one of
    these has the single level `kept`.

    Raises:
        ValueError: A block to keep does not exist, or the blocks cannot be paired because their number is odd.
    """
    for key, kept in (("keep_attention", keep_attention), ("keep_mlp", keep_mlp)):
        unknown = [block for block in kept if not 0 <= block < len(blocks)]
        if unknown:
            raise ValueError(f"compress.{key} names block {unknown[0]}, but blocks are 0 to {len(blocks) - 1}")
    must_stay = {(block, "attention") for block in keep_attention} | {(block, "mlp") for block in keep_mlp}
    if granularity == "subblock":
        return [_unit(blocks, (block,), kind, must_stay) for block in range(len(blocks)) for kind in SUBBLOCKS]
    stride = 2 if granularity == "pair" else 1
    if len(blocks) % stride:
        raise ValueError(f"compress.granularity=pair needs an even number of blocks, not {len(blocks)}: use block")
    starts = range(0, len(blocks), stride)
    return [_unit(blocks, tuple(range(start, start + stride)), "block", must_stay) for start in starts]


def _unit(blocks: Sequence[BlockShape], members: tuple[int, ...], kind: str, must_stay: set[tuple[int, str]]) -> Unit:
    subblocks = [(block, subblock) for block in members for subblock in _subblocks_of_kind(kind)]
    num_weights = sum(getattr(blocks[block], subblock) for block, subblock in subblocks)
    kept = Level(label="kept", value=0, cost=1, size_bytes=2 * num_weights)
    dropped = Level(label="dropped", value=1, cost=0, size_bytes=0)
    return Unit(
        name="+".join(f"{blocks[block].name}.{kind}" for block in members),
        blocks=members,
        kind=kind,
        layers=(),
        num_weights=num_weights,
        levels=(kept, dropped) if must_stay.isdisjoint(subblocks) else (kept,),
        trade_group=kind,
    )


def subblocks_of(unit: Unit) -> tuple[str, ...]:
    """The sub-blocks of each of its blocks that a droppable unit contains."""
    return _subblocks_of_kind(unit.kind)


def _subblocks_of_kind(kind: str) -> tuple[str, ...]:
    return SUBBLOCKS if kind == "block" else (kind,)
