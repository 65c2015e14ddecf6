"""Depth pruning: attention and MLP sub-blocks, whole blocks or pairs of blocks are kept or dropped."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field

from evopress.runtime.config_class import config_class
from evopress.space.budget import Metric
from evopress.space.units import Level, Unit

SUBBLOCKS = ("attention", "mlp")


@dataclass(frozen=True)
class BlockShape:
    """Numbers of weights in the attention and the MLP of one block; layer names start with `name`."""

    name: str
    attention: int
    mlp: int


@config_class
class Drop:
    """What may be dropped. It has no levels to store, so it needs no database and no calibration text.

    `granularity`: attentions and MLPs one by one (as many of the one as of the other go), whole blocks, or pairs of
    consecutive blocks. `keep_attention` and `keep_mlp` list blocks whose attention or MLP must stay.
    """

    metric: ClassVar[Metric] = "drop"

    granularity: Literal["subblock", "block", "pair"] = "subblock"
    keep_attention: list[int] = Field(default_factory=list)
    keep_mlp: list[int] = Field(default_factory=list)

    @property
    def span(self) -> tuple[float, float]:
        return (0.0, 1.0)

    def units(self, blocks: Sequence[BlockShape]) -> list[Unit]:
        """All units of a model, in block order. Raises ValueError where an option does not fit the model."""
        for key, kept in (("keep_attention", self.keep_attention), ("keep_mlp", self.keep_mlp)):
            outside = [block for block in kept if not 0 <= block < len(blocks)]
            if outside:
                raise ValueError(f"compress.{key} names block {outside[0]}, but blocks are 0 to {len(blocks) - 1}")
        if self.granularity == "subblock":
            return [self._unit(blocks, (block,), kind) for block in range(len(blocks)) for kind in SUBBLOCKS]
        stride = 2 if self.granularity == "pair" else 1
        if len(blocks) % stride:
            raise ValueError(f"compress.granularity=pair needs an even number of blocks, not {len(blocks)}: use block")
        return [
            self._unit(blocks, tuple(range(first, first + stride)), "block") for first in range(0, len(blocks), stride)
        ]

    def _unit(self, blocks: Sequence[BlockShape], members: tuple[int, ...], kind: str) -> Unit:
        parts = SUBBLOCKS if kind == "block" else (kind,)
        num_weights = sum(getattr(blocks[block], part) for block in members for part in parts)
        kept = Level(label="kept", value=0, cost=1, size_bytes=2 * num_weights)
        dropped = Level(label="dropped", value=1, cost=0, size_bytes=0)
        protected = {"attention": self.keep_attention, "mlp": self.keep_mlp}
        must_stay = any(block in protected[part] for block in members for part in parts)
        return Unit(
            name="+".join(f"{blocks[block].name}.{kind}" for block in members),
            blocks=members,
            kind=kind,
            layers=(),
            num_weights=num_weights,
            levels=(kept,) if must_stay else (kept, dropped),
            group=kind,
        )
