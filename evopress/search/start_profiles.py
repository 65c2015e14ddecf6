"""Profiles to start from: uniform, evenly spaced or random, and as close to the budget as possible.

They keep everything that may be dropped, unless the budget cannot be met by levels alone.
"""

from collections.abc import Iterable, Sequence
from random import Random

from evopress.search.repair import (
    cost_of_raising,
    drop_in_order,
    lower_at_random,
    raisable_units,
    raise_in_order,
    raise_until_spent,
)
from evopress.space.budget import Budget, Cap
from evopress.space.level_arrays import Levels, as_levels
from evopress.space.units import Profile, Space


def uniform_profile(space: Space, budget: Budget) -> Profile | None:
    """The least compressed uniform profile within the budget, if it spends the budget; else None.

    Uniform means one level for all units. The budget is spent if no unit can go one level up within it. In a space of
    drops alone, a uniform profile drops nothing or all that may be dropped, so the result is None for most targets.

    Raises ValueError if no profile is within the budget.
    """
    for level in range(_num_levels(space)):
        profile = space.uniform(level)
        if budget.holds(space, profile):
            return profile if not raisable_units(space, budget.caps(space), profile) else None
    if budget.holds(space, _most_compressed(space)):
        return None
    raise ValueError(out_of_reach_message(space, budget))


def random_profile(space: Space, budget: Budget, rng: Random) -> Profile:
    """Lower random units of the most compressed uniform profile above the budget until all caps hold.

    If levels alone do not suffice, random sub-blocks are dropped as well.

    Source: arXiv 2410.14649, Appendix on fractional targets. Unlike the paper, this then spends the remaining slack by
    raising random units where that fits.
    """
    caps = budget.caps(space)
    levels = as_levels(lowest_uniform_above(space, budget))
    for cap in caps:
        tradable = cap.indices[space.arrays.is_tradable(levels)[cap.indices]]
        lower_at_random(space, cap, levels, candidates=tradable, rng=rng)
        drop_in_order(space, cap, levels, order=rng.sample(list(space.children), len(space.children)))
    raisable = raisable_units(space, caps, levels)
    raise_in_order(space, caps, levels, order=rng.sample(raisable, len(raisable)))
    return space.normalized(tuple(levels.tolist()))


def evenly_spaced_profile(space: Space, budget: Budget) -> Profile:
    """The uniform profile if it spends the budget, else a mixture of two neighbouring levels within the budget.

    The mixture starts from the most compressed uniform profile above the budget. Units that are evenly spaced through
    the model are lowered by one level until all caps hold. If even the last level costs too much, evenly spaced
    sub-blocks are dropped, and units are raised again to spend the slack. Nothing here is random. Raises ValueError if
    no profile is within the budget.
    """
    uniform = uniform_profile(space, budget)
    if uniform:
        return uniform
    levels = as_levels(lowest_uniform_above(space, budget))
    caps = budget.caps(space)
    for cap in caps:
        _lower_evenly(space, cap, levels)
        drop_in_order(space, cap, levels, order=_evenly_spread(list(space.children)))
    if any(levels[index] for index in space.children):  # a drop saves a lot at once, so there is slack to spend
        raise_until_spent(space, caps, levels, pick=lambda raisable: _evenly_spread(raisable)[0])
    return space.normalized(tuple(levels.tolist()))


def lowest_uniform_above(space: Space, budget: Budget) -> Profile:
    """The most compressed uniform profile that is still above the budget; everything at level 0 if there is none."""
    uniforms = [space.uniform(level) for level in range(_num_levels(space))]
    return next((profile for profile in reversed(uniforms) if not budget.holds(space, profile)), uniforms[0])


def check_profiles(space: Space, key: str, profiles: Iterable[Profile]) -> None:
    """Raises ValueError, naming the configuration key, if one of the configured profiles does not fit the space."""
    for profile in profiles:
        try:
            space.check(profile)
        except ValueError as error:
            raise ValueError(f"{key} does not fit this model and database: {error}") from error


def out_of_reach_message(space: Space, budget: Budget) -> str:
    """The error message for a budget that no profile meets."""
    smallest = budget.amount(space, _most_compressed(space))
    return f"budget.target is {budget} but the most compressed profile has {smallest}: {budget.remedy}"


def _lower_evenly(space: Space, cap: Cap, levels: Levels) -> None:
    """Lower units of `cap` in place until it holds, so that the savings grow evenly through the model.

    In model order, a unit is lowered if the savings so far would otherwise fall behind by more than half of what this
    unit saves. When units have different sizes, that may save too little or too much. Then the smallest of the other
    units are lowered as well, or lowered units are raised again, the largest first, as far as the cap allows.
    """
    savings = {
        i: cost_of_raising(space, i, level + 1)
        for i, level in ((i, int(levels[i])) for i in space.tradable_units(levels.tolist(), cap.members))
        if level < len(space.units[i].levels) - 1
    }
    needed, total = -cap.slack(space, levels), sum(savings.values())
    passed = saved = 0
    lowered = set()
    for i, saving in savings.items():
        passed += saving
        if 2 * needed * passed > (2 * saved + saving) * total:
            lowered.add(i)
            saved += saving
    for i in sorted(savings, key=lambda i: savings[i]):
        if saved < needed and i not in lowered:
            lowered.add(i)
            saved += savings[i]
    for i in sorted(savings, key=lambda i: -savings[i]):
        if i in lowered and saved - savings[i] >= needed:
            lowered.remove(i)
            saved -= savings[i]
    for i in lowered:
        levels[i] += 1


def _evenly_spread(indices: Sequence[int]) -> list[int]:
    """The indices in the order of a golden-ratio sequence: for every k, the first k of them are spread evenly."""
    return [indices[place] for place in sorted(range(len(indices)), key=lambda i: (i + 1) * 0.6180339887498949 % 1)]


def _num_levels(space: Space) -> int:
    return max(len(unit.levels) for unit in space.units)


def _most_compressed(space: Space) -> Profile:
    """The profile with every unit at its last level, and everything dropped that may be dropped."""
    lowest = space.uniform(_num_levels(space) - 1)
    return tuple(len(space.units[i].levels) - 1 if i in space.children else level for i, level in enumerate(lowest))
