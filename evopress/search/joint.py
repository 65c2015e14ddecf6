"""Drops for a search that is guided by tables of levels: what a drop does is measured, as no gradient foretells it."""

from collections.abc import Generator
from math import inf

from evopress.search.base import Answer, Batch, Question, check_numbers, fitness_of
from evopress.search.moves import dropped, restored
from evopress.space.budget import Cap
from evopress.space.units import Profile, Space

Rows = list[list[float]]


def drop_effects(
    space: Space, profile: Profile, num_tokens: int, excerpt: int | None = None
) -> Generator[Question, Answer, dict[int, list[float]]]:
    """Asks what every sub-block alone does to the KL, as tables do of levels, when it changes sides, on one minibatch.

    Returns rows of scores by unit, in which a change of sides has its effect and staying 0. Units inside a dropped
    sub-block have a row as well: 0 at the levels at which it was restored, and infinite at those that were not tried.
    """
    changes = {i: _changed(space, profile, i) for i in space.children if len(space.units[i].levels) > 1}
    profiles = (profile, *changes.values())
    batch = Batch(profiles, num_tokens, f"{len(changes)} single drops", fitness="kl", excerpt=excerpt)
    base, *fitness = yield from fitness_of(batch)
    check_numbers(fitness)
    rows: dict[int, list[float]] = {}
    for (index, changed), found in zip(changes.items(), fitness, strict=True):
        rows[index] = [found - base, 0.0] if profile[index] else [0.0, found - base]
        for child in space.children[index] if profile[index] else ():
            rows[child] = [0.0 if level == changed[child] else inf for level in range(len(space.units[child].levels))]
    return rows


def _changed(space: Space, profile: Profile, index: int) -> Profile:
    """A kept sub-block dropped; a dropped one restored like the nearest of its kind that is kept."""
    if not profile[index]:
        return dropped(space, profile, index)
    unit = space.units[index]
    kept = [i for i in space.children if space.units[i].kind == unit.kind and not profile[i]]
    nearest = min(kept, key=lambda i: abs(space.units[i].blocks[0] - unit.blocks[0]), default=None)
    return restored(space, profile, index, like=nearest)


def ways(space: Space, caps: tuple[Cap, ...], profile: Profile) -> list[tuple[Cap, ...]]:
    """The caps, and those that leave drops as they are in `profile`, if that is another way and levels alone can go it.

    Without anything that may be dropped both are the same.
    """
    frozen = without_drops(space, caps, profile)
    movable = {index for cap in frozen for index in cap.members}
    lowest = [len(u.levels) - 1 if i in movable else profile[i] for i, u in enumerate(space.units)]
    return [caps] if frozen == caps or any(cap.slack(space, lowest) < 0 for cap in frozen) else [caps, frozen]


def without_drops(space: Space, caps: tuple[Cap, ...], profile: Profile) -> tuple[Cap, ...]:
    """The caps on the units whose levels may trade while what is dropped in `profile` stays as it is."""
    return tuple(Cap(tuple(space.tradable_units(profile, cap.members)), cap.max_cost) for cap in caps)
