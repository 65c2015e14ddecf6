"""Depth pruning: attention and MLP sub-blocks, whole blocks or pairs of blocks are kept or dropped."""

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from evopress.runtime.config_class import config_class
from evopress.space.budget import Metric
from evopress.space.droppable import Granularity, droppable_units
from evopress.space.shapes import BlockShape
from evopress.space.units import Unit


@config_class
class Drop:
    """What may be dropped. There are no levels to store, so neither a database nor calibration text is needed.

    `granularity` is the size of the dropped parts: single attentions and MLPs (the same number of each is dropped),
    whole blocks, or pairs of consecutive blocks. `keep_attention` and `keep_mlp` list blocks whose attention or MLP is
    never dropped.
    """

    metric: ClassVar[Metric] = "drop"

    granularity: Granularity = "subblock"
    keep_attention: list[int] = Field(default_factory=list)
    keep_mlp: list[int] = Field(default_factory=list)

    @property
    def span(self) -> tuple[float, float]:
        return (0.0, 1.0)

    def units(self, blocks: Sequence[BlockShape]) -> list[Unit]:
        """All units of a model, in block order. Raises ValueError if an option does not fit the model."""
        return droppable_units(blocks, self.granularity, keep_attention=self.keep_attention, keep_mlp=self.keep_mlp)
