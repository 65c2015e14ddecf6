"""Two budgets at once: the cost of a level is the larger of its two shares of what the budgets leave to the units.

If these costs add up to at most one, both budgets hold, because the shares of a single budget cannot add up to more.
The converse is not true: if one unit takes more of the bytes and another more of the seconds, neither budget is used
up. The times of layers are mostly in proportion to their bytes, and then little is left.
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
