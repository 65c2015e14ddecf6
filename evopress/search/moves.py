"""Steps through the space: start profiles on the budget, and level-switch mutation that stays on it.

Start profiles keep everything that may be dropped besides its levels, as far as the budget lets them.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from random import Random

from evopress.space.budget import Budget, Cap
from evopress.space.units import Profile, Space

MAX_LEVEL_CHANGES = 10
MIN_SHARE_SPENT = Fraction(4, 5)
MAX_TRIES = 200


def uniform_profile(space: Space, budget: Budget) -> Profile | None:
    """The least compressed profile with one level for all units of a cap, if it spends the budget; else None.

    A uniform profile spends the budget when no unit could be raised by one level within it. For drops, uniform means
    nothing dropped, so there is one only at a target of zero.
    """
    for level in range(max(len(unit.levels) for unit in space.units)):
        profile = space.uniform(level)
        if budget.holds(space, profile):
            return profile if not _raisable_within(space, budget.caps(space), profile) else None
    if budget.holds(space, _all_dropped(space)):
        return None
    raise ValueError(out_of_reach(space, budget))


def random_profile(space: Space, budget: Budget, rng: Random) -> Profile:
    """From the lowest uniform profile above the budget, lower random units until all caps hold; spend what is left.

    Trade groups are picked with probability proportional to their size. Source: arXiv 2410.14649, Appendix on
    fractional targets. Unlike there, cost that is left over is then spent on raising random units where it fits.
    """
    caps = budget.caps(space)
    levels = list(lowest_above(space, budget))
    for cap in caps:
        _lower_until_it_holds(space, cap, levels, space.tradable_units(levels, cap.members), rng)
        _drop_until_it_holds(space, cap, levels, rng.sample(list(space.children), len(space.children)))
    for index in _raisable_within(space, caps, tuple(levels), rng):
        if _raise_fits(space, caps, levels, index):
            levels[index] -= 1
    return space.normalized(tuple(levels))


def evenly_spaced_profile(space: Space, budget: Budget) -> Profile:
    """The uniform profile where it spends the budget, else the next thing to it.

    That is the lowest uniform profile above the budget with, under each cap, units one level lower that make the cap
    hold, spaced evenly through the model. Where all levels are too large, evenly spaced sub-blocks are dropped as well.
    Nothing in it is random.
    """
    uniform = uniform_profile(space, budget)
    if uniform:
        return uniform
    levels = list(lowest_above(space, budget))
    caps = budget.caps(space)
    for cap in caps:
        _lower_evenly(space, cap, levels)
        _drop_until_it_holds(space, cap, levels, spread(list(space.children)))
    if any(levels[index] for index in space.children):  # these go in large steps
        _spend(space, caps, levels, lambda raisable: spread(raisable)[0])
    return space.normalized(tuple(levels))


def num_switches(rng: Random, most: int) -> int:
    """min(U₁, U₂) with U uniform on 1 … `most`. Source: arXiv 2410.14649, Algorithm 2."""
    return min(rng.randint(1, most), rng.randint(1, most))


def mutate(space: Space, caps: tuple[Cap, ...], parent: Profile, rng: Random, max_switches: int) -> Profile | None:
    """Level-switch mutation: raise random units, and in the same trade groups lower others until the caps hold again.

    With equal steps in a group this is the paper's switch, one unit a level up and another one down. With unequal steps
    (several sizes in a group, or widths 2, 4, 8) more units are lowered; the mutant is rejected (None) when more than
    10 levels changed or when less than 80 % of the removed cost was added back.

    Where sub-blocks may be dropped, a switch is one of theirs as often as a unit drawn at random is a sub-block.
    """
    if space.children and rng.randrange(len(space)) < len(space.children):
        return switch_drops(space, caps, parent, rng)
    levels = list(parent)
    groups, sizes = list(space.trade_groups.values()), [len(members) for members in space.trade_groups.values()]
    cap_of = {index: cap for cap in caps for index in cap.members}
    raised: set[int] = set()
    lowered: set[int] = set()
    for _ in range(num_switches(rng, max_switches)):
        members = space.tradable_units(parent, rng.choices(groups, weights=sizes)[0])
        raisable = [i for i in members if levels[i] > 0 and i not in lowered]
        if not raisable:
            continue
        up = rng.choice(raisable)
        levels[up] -= 1
        raised.add(up)
        lowerable = [i for i in members if i not in raised]
        lowered |= _lower_until_it_holds(space, cap_of[up], levels, lowerable, rng)
    child = tuple(levels)
    if child == parent or any(cap.slack(space, child) < 0 for cap in caps):
        return None
    return child if _is_fair(space, parent, child) else None


def switch_drops(space: Space, caps: tuple[Cap, ...], profile: Profile, rng: Random) -> Profile | None:
    """Drop a kept sub-block, restore a dropped one, or let two of a kind change places; then repair the budget.

    What is restored comes back at the levels of another of its kind: of the one that is dropped instead, or of any that
    is kept. Random units are lowered until the caps hold, and raised as far as they let them; None where that fails.

    Algorithm 1's limit of 10 level changes cannot hold here: what an MLP frees may raise far more than ten small units.
    Nor is its share of 80 % added back of use: spending ends where nothing fits any more.
    """
    droppable = [index for index in space.children if len(space.units[index].levels) > 1]
    if not droppable:
        return None
    index = rng.choice(droppable)
    alike = [i for i in droppable if space.units[i].kind == space.units[index].kind and i != index]
    others = [i for i in alike if profile[i] != profile[index]]
    if others and rng.random() < 0.5:
        down, up = sorted((index, rng.choice(others)), key=lambda i: profile[i])
        levels = list(dropped(space, restored(space, profile, up, like=down), down))
    elif profile[index]:
        levels = list(restored(space, profile, index, like=rng.choice(others) if others else None))
    else:
        levels = list(dropped(space, profile, index))
    for cap in caps:
        _lower_until_it_holds(space, cap, levels, space.tradable_units(levels, cap.members), rng)
    _spend(space, caps, levels, rng.choice)
    child = tuple(levels)
    return None if any(cap.slack(space, child) < 0 for cap in caps) else child


def dropped(space: Space, profile: Profile, index: int) -> Profile:
    """`profile` without the sub-block that is unit `index`."""
    return space.normalized((*profile[:index], 1, *profile[index + 1 :]))


def restored(space: Space, profile: Profile, index: int, *, like: int | None) -> Profile:
    """`profile` with the dropped sub-block back, at the levels of the kept one `like`, else at its last levels."""
    levels = list(profile)
    levels[index] = 0
    models = space.children[like] if like is not None else ()
    for place, child in enumerate(space.children[index]):
        last = len(space.units[child].levels) - 1
        levels[child] = min(last, profile[models[place]]) if place < len(models) else last
    return tuple(levels)


def spread(indices: Sequence[int]) -> list[int]:
    """The same in an order whose first few are always spaced evenly, by steps of the golden ratio around a circle."""
    return [indices[place] for place in sorted(range(len(indices)), key=lambda i: (i + 1) * 0.6180339887498949 % 1)]


def mutants(
    space: Space, caps: tuple[Cap, ...], parents: list[Profile], count: int, rng: Random, max_switches: int
) -> list[Profile]:
    """Up to `count` distinct mutants of random parents, none of them a parent; fewer in a small neighbourhood."""
    return distinct(lambda: mutate(space, caps, rng.choice(parents), rng, max_switches), count, exclude=set(parents))


def distinct(draw: Callable[[], Profile | None], count: int, exclude: set[Profile]) -> list[Profile]:
    """Up to `count` distinct profiles from `draw`; gives up after 200 draws in a row brought nothing new."""
    found: dict[Profile, None] = {}
    tries = 0
    while len(found) < count and tries < MAX_TRIES:
        profile = draw()
        tries += 1
        if profile is not None and profile not in exclude and profile not in found:
            found[profile] = None
            tries = 0
    return list(found)


def lowest_above(space: Space, budget: Budget) -> Profile:
    """The most compressed uniform profile that is still above the budget; everything at level 0 when none is."""
    uniforms = [space.uniform(level) for level in range(_num_levels(space))]
    return next((profile for profile in reversed(uniforms) if not budget.holds(space, profile)), uniforms[0])


def _lower_evenly(space: Space, cap: Cap, levels: list[int]) -> None:
    """Lower members of `cap` in place until it holds, so that what is saved grows evenly through the model.

    A member is lowered where more than half of what it saves is due. What that leaves over or open, with members of
    unequal size, is spent on the largest that fits again, or saved at the smallest.
    """
    members = space.tradable_units(levels, cap.members)
    saving = {i: _raise_cost(space, levels[i] + 1, i) for i in members if levels[i] < len(space.units[i].levels) - 1}
    needed, total = -cap.slack(space, tuple(levels)), sum(saving.values())
    passed = saved = 0
    lowered = set()
    for i in saving:
        passed += saving[i]
        if 2 * needed * passed > (2 * saved + saving[i]) * total:
            lowered.add(i)
            saved += saving[i]
    for i in sorted(saving, key=lambda i: saving[i]):
        if saved < needed and i not in lowered:
            lowered.add(i)
            saved += saving[i]
    for i in sorted(saving, key=lambda i: -saving[i]):
        if i in lowered and saved - saving[i] >= needed:
            lowered.remove(i)
            saved -= saving[i]
    for i in lowered:
        levels[i] += 1


def _lower_until_it_holds(space: Space, cap: Cap, levels: list[int], candidates: list[int], rng: Random) -> set[int]:
    """Lower random units of `candidates` in place, one level at a time, until `cap` holds; returns which."""
    lowered: set[int] = set()
    slack = cap.slack(space, tuple(levels))
    while slack < 0:
        lowerable = [i for i in candidates if levels[i] < len(space.units[i].levels) - 1]
        if not lowerable:
            break
        index = rng.choice(lowerable)
        before = space.units[index].levels[levels[index]].cost
        levels[index] += 1
        slack += before - space.units[index].levels[levels[index]].cost
        lowered.add(index)
    return lowered


def _drop_until_it_holds(space: Space, cap: Cap, levels: list[int], order: Sequence[int]) -> None:
    """Drop sub-blocks in place, in this order, until `cap` holds."""
    for index in order:
        if cap.slack(space, levels) < 0 and len(space.units[index].levels) > 1:
            levels[index] = 1


def _spend(space: Space, caps: tuple[Cap, ...], levels: list[int], pick: Callable[[list[int]], int]) -> None:
    """Raise one unit after another in place, as `pick` chooses, until none fits within the caps."""
    while fitting := _raisable_within(space, caps, levels):
        levels[pick(fitting)] -= 1


def _raisable_within(
    space: Space, caps: tuple[Cap, ...], profile: Sequence[int], rng: Random | None = None
) -> list[int]:
    """Units that fit within the caps one level up, in random order when `rng` is given."""
    slack_of: dict[int, int] = {}
    for cap in caps:
        slack_of |= dict.fromkeys(space.tradable_units(profile, cap.members), cap.slack(space, profile))
    fits = [i for i in slack_of if profile[i] > 0 and _raise_cost(space, profile[i], i) <= slack_of[i]]
    return rng.sample(fits, len(fits)) if rng else fits


def _raise_fits(space: Space, caps: tuple[Cap, ...], levels: list[int], index: int) -> bool:
    return any(
        index in cap.members and _raise_cost(space, levels[index], index) <= cap.slack(space, tuple(levels))
        for cap in caps
    )


def _raise_cost(space: Space, level: int, index: int) -> int:
    return space.units[index].levels[level - 1].cost - space.units[index].levels[level].cost


def _is_fair(space: Space, parent: Profile, child: Profile) -> bool:
    changes = [
        (abs(new - old), unit.levels[new].cost - unit.levels[old].cost)
        for unit, old, new in zip(space.units, parent, child, strict=True)
    ]
    removed = -sum(cost for _, cost in changes if cost < 0)
    added = sum(cost for _, cost in changes if cost > 0)
    return sum(steps for steps, _ in changes) <= MAX_LEVEL_CHANGES and added >= MIN_SHARE_SPENT * removed


def _num_levels(space: Space) -> int:
    return max(len(unit.levels) for unit in space.units)


def _all_dropped(space: Space) -> Profile:
    """The most compressed profile."""
    lowest = space.uniform(_num_levels(space) - 1)
    return tuple(len(space.units[i].levels) - 1 if i in space.children else level for i, level in enumerate(lowest))


def out_of_reach(space: Space, budget: Budget) -> str:
    """What to say of a budget that no profile meets."""
    smallest = budget.achieved(space, _all_dropped(space))
    remedy = "raise" if budget.metric in ("bits", "size") else "lower"
    keep = ", or keep less by compress.keep_*" if budget.metric == "drop" else ""
    return f"budget.target is {budget} but the most compressed profile has {smallest:g}: {remedy} budget.target{keep}"
