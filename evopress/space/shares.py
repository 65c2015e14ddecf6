"""Two budgets at once: a level costs the larger of its shares of what the two budgets leave to the units.

If the shares of all units add up to at most one, both budgets hold, because neither's own shares can add up to more.
The converse is not true: where one unit takes more of the bytes and another more of the seconds, something of both is
left. Times of layers are mostly in proportion to their bytes, and then this is little.
"""

from dataclasses import replace

from evopress.space.budget import Budget, Cap
from evopress.space.units import Space, Unit

WHOLE = 10**12
"""The whole of each budget. Shares are rounded up to this fraction."""

Priced = tuple[Space, Budget]
"""A space whose costs a budget counts, with one cap on all units."""


def as_shares(first: Priced, second: Priced) -> Space:
    """The space whose costs are shares of both budgets.

    Raises ValueError if one of the budgets leaves nothing to the units.
    """
    limits = [_limit(space, budget) for space, budget in (first, second)]

    def shared(unit: Unit, other: Unit) -> Unit:
        levels = [
            replace(level, cost=max(-(-cost * WHOLE // limit) for cost, limit in zip(costs, limits, strict=True)))
            for level, *costs in (
                (level, level.cost, second_level.cost)
                for level, second_level in zip(unit.levels, other.levels, strict=True)
            )
        ]
        return replace(unit, levels=tuple(levels))

    space, other = first[0], second[0]
    units = tuple(shared(*pair) for pair in zip(space.units, other.units, strict=True))
    return replace(space, units=units, fixed_cost=0, priced=(space, other))


def whole(space: Space) -> tuple[Cap, ...]:
    """One cap on all units: the whole of both budgets."""
    return (Cap(tuple(range(len(space))), WHOLE),)


def _limit(space: Space, budget: Budget) -> int:
    """What a budget leaves to the units."""
    (cap,) = budget.caps(space)
    if cap.max_cost <= 0:
        raise ValueError(f"the budget of {budget} leaves nothing to the layers: {budget.remedy}")
    return cap.max_cost
