"""What it costs to keep an attention, in addition to its layers."""

from collections.abc import Sequence
from dataclasses import replace

from evopress.space.units import Space, Unit


def with_attention_costs(space: Space, costs: Sequence[int]) -> Space:
    """The space in which keeping the attention of each block costs more, such as the bytes of its cache.

    `costs` has the additional cost of every block. If no unit may drop an attention, its cost is added to the fixed
    cost of the space.
    """
    droppable = {block for unit in space.units if _has_attention(unit) for block in unit.blocks}

    def priced(unit: Unit) -> Unit:
        if not _has_attention(unit):
            return unit
        kept, *dropped = unit.levels
        cost = kept.cost + sum(costs[block] for block in unit.blocks)
        return replace(unit, levels=(replace(kept, cost=cost), *dropped))

    fixed = sum(size for block, size in enumerate(costs) if block not in droppable)
    return replace(space, units=tuple(map(priced, space.units)), fixed_cost=fixed)


def _has_attention(unit: Unit) -> bool:
    """Whether the unit is kept or dropped as a whole, and contains attentions."""
    return not unit.layers and unit.kind in ("attention", "block")
