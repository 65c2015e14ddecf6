"""Level-switch mutation: random steps to other profiles within the budget."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from random import Random

import numpy as np

from evopress.search.drops import dropped, restored
from evopress.search.repair import lower_at_random, raise_until_spent
from evopress.space.budget import Cap
from evopress.space.level_arrays import Levels, as_levels
from evopress.space.units import Profile, Space

MAX_LEVEL_CHANGES = 10
MIN_SHARE_SPENT = Fraction(4, 5)
MAX_TRIES = 200


def num_switches(rng: Random, most: int) -> int:
    """min(U₁, U₂) with U uniform on 1 … `most`. Source: arXiv 2410.14649, Algorithm 2."""
    return min(rng.randint(1, most), rng.randint(1, most))


def mutate(space: Space, caps: Sequence[Cap], parent: Profile, *, rng: Random, max_switches: int) -> Profile | None:
    """Raise random units, and lower others in the same trade groups until the caps hold again.

    If all steps in a group have the same cost, this is the paper's switch: one unit goes a level up and another one
    down. Otherwise (units of several sizes, or widths 2, 4, 8) more than one unit may be lowered.

    Returns None, a rejected mutant, if nothing changed, if a cap does not hold, if the units moved by more than 10
    levels in all, or if less than 80 % of the saved cost was spent again.

    If sub-blocks may be dropped, the mutation switches drops instead, with a probability equal to the share of
    sub-blocks among the units.

    Source: arXiv 2410.14649, Algorithm 2.
    """
    if space.children and rng.randrange(len(space)) < len(space.children):
        return switch_drops(space, caps, parent, rng=rng)
    before, groups = as_levels(parent), space.trade_group_arrays
    levels, sizes = before.copy(), list(map(len, groups))
    may_be_raised = space.arrays.is_tradable(before)
    may_be_lowered = may_be_raised.copy()
    for _ in range(num_switches(rng, max_switches)):
        members = rng.choices(groups, weights=sizes)[0]
        raisable = members[may_be_raised[members] & (levels[members] > 0)]
        if not len(raisable):
            continue
        up = int(rng.choice(raisable))  # type: ignore[arg-type]
        levels[up] -= 1
        may_be_lowered[up] = False
        cap = next(cap for cap in reversed(caps) if up in cap.member_set)
        lowered = lower_at_random(space, cap, levels, candidates=members[may_be_lowered[members]], rng=rng)
        may_be_raised[list(lowered)] = False
    if (levels == before).all() or any(cap.slack(space, levels) < 0 for cap in caps):
        return None
    return tuple(levels.tolist()) if _is_small_and_balanced(space, before, levels) else None


def switch_drops(space: Space, caps: Sequence[Cap], profile: Profile, *, rng: Random) -> Profile | None:
    """Drop a kept sub-block, restore a dropped one, or exchange two of one kind. Then return to the budget.

    A restored sub-block gets the levels of another one of its kind: the one dropped in exchange, or a random kept one.
    Then random units are lowered until the caps hold, and raised until the slack is spent. Returns None if the caps
    still do not hold, or if nothing may be dropped.

    The limits of `mutate` do not apply. The cost of one MLP pays for raising far more than ten small units, and the
    slack is always spent here.
    """
    droppable = [index for index in space.children if len(space.units[index].levels) > 1]
    if not droppable:
        return None
    levels = as_levels(_with_drops_switched(space, profile, droppable, rng=rng))
    for cap in caps:
        tradable = cap.indices[space.arrays.is_tradable(levels)[cap.indices]]
        lower_at_random(space, cap, levels, candidates=tradable, rng=rng)
    raise_until_spent(space, caps, levels, pick=rng.choice)
    return None if any(cap.slack(space, levels) < 0 for cap in caps) else tuple(levels.tolist())


def _with_drops_switched(space: Space, profile: Profile, droppable: Sequence[int], *, rng: Random) -> Profile:
    """`profile` with a random sub-block dropped, restored, or exchanged with one of its kind. Ignores the budget."""
    index = rng.choice(droppable)
    same_kind = [i for i in droppable if space.units[i].kind == space.units[index].kind and i != index]
    opposite = [i for i in same_kind if profile[i] != profile[index]]
    if opposite and rng.random() < 0.5:
        down, up = sorted((index, rng.choice(opposite)), key=lambda i: profile[i])
        return dropped(space, restored(space, profile, up, like=down), down)
    if profile[index]:
        return restored(space, profile, index, like=rng.choice(opposite) if opposite else None)
    return dropped(space, profile, index)


def mutants(
    space: Space, caps: Sequence[Cap], parents: Sequence[Profile], *, count: int, rng: Random, max_switches: int
) -> list[Profile]:
    """Up to `count` distinct mutants of random parents, none of which is a parent."""

    def draw() -> Profile | None:
        return mutate(space, caps, rng.choice(parents), rng=rng, max_switches=max_switches)

    return distinct_profiles(draw, count, exclude=set(parents))


def distinct_profiles(draw: Callable[[], Profile | None], count: int, *, exclude: set[Profile]) -> list[Profile]:
    """Up to `count` distinct profiles from `draw`. Gives up after 200 draws in a row without a new profile."""
    profiles: dict[Profile, None] = {}
    tries = 0
    while len(profiles) < count and tries < MAX_TRIES:
        profile = draw()
        tries += 1
        if profile is not None and profile not in exclude and profile not in profiles:
            profiles[profile] = None
            tries = 0
    return list(profiles)


def _is_small_and_balanced(space: Space, parent: Levels, child: Levels) -> bool:
    """Whether the units moved by few enough levels, and enough of the saved cost was spent again."""
    moved, costs = np.flatnonzero(parent != child), space.arrays.costs
    changes = costs[moved, child[moved]] - costs[moved, parent[moved]]
    removed, added = -int(changes[changes < 0].sum()), int(changes[changes > 0].sum())
    steps = int(np.abs(child - parent).sum())
    return steps <= MAX_LEVEL_CHANGES and added >= MIN_SHARE_SPENT * removed
