"""Drops in a space that also has levels. Their effects are measured, because gradients do not predict them."""

from math import inf

from evopress.search.base import Batch, SearchStep, fitness_of
from evopress.search.selection import check_any_finite
from evopress.search.switches import switched
from evopress.space.units import Profile, Space


def dropped(space: Space, profile: Profile, index: int) -> Profile:
    """`profile` with one sub-block dropped: the unit `index`."""
    return switched(space, profile, index, 1)


def restored(space: Space, profile: Profile, index: int, *, like: int | None) -> Profile:
    """`profile` with a dropped sub-block restored: the unit `index`.

    Its layers get the levels that the layers of the sub-block `like` have, or their last levels if `like` is None.
    """
    levels = list(profile)
    levels[index] = 0
    layers_to_copy = space.children[like] if like is not None else ()
    for place, child in enumerate(space.children[index]):
        last = len(space.units[child].levels) - 1
        levels[child] = min(last, profile[layers_to_copy[place]]) if place < len(layers_to_copy) else last
    return tuple(levels)


def measure_drop_effects(
    space: Space, profile: Profile, num_tokens: int, *, excerpt: int | None = None
) -> SearchStep[dict[int, list[float]]]:
    """The change of the KL when a single sub-block is dropped, or restored if it is already dropped.

    Every sub-block that may be dropped is measured, all on one minibatch. Returns one score per level for each of these
    units; the score of the present state is 0. Units inside a dropped sub-block have scores as well: 0 for the level
    with which they were restored, and infinity for the levels that were not tried.
    """
    changed = {i: _with_drop_changed(space, profile, i) for i in space.children if len(space.units[i].levels) > 1}
    profiles = (profile, *changed.values())
    batch = Batch(profiles, num_tokens, f"{len(changed)} single drops", "kl", excerpt, decisive=False)
    base, *fitness = yield from fitness_of(batch)
    check_any_finite(fitness)
    scores: dict[int, list[float]] = {}
    for (index, changed_profile), value in zip(changed.items(), fitness, strict=True):
        scores[index] = [value - base, 0.0] if profile[index] else [0.0, value - base]
        for child in space.children[index] if profile[index] else ():
            num_levels = len(space.units[child].levels)
            scores[child] = [0.0 if level == changed_profile[child] else inf for level in range(num_levels)]
    return scores


def _with_drop_changed(space: Space, profile: Profile, index: int) -> Profile:
    """`profile` with a kept sub-block dropped, or a dropped one restored like the nearest kept one of its kind."""
    if not profile[index]:
        return dropped(space, profile, index)
    unit = space.units[index]
    kept = [i for i in space.children if space.units[i].kind == unit.kind and not profile[i]]
    nearest = min(kept, key=lambda i: abs(space.units[i].blocks[0] - unit.blocks[0]), default=None)
    return restored(space, profile, index, like=nearest)
