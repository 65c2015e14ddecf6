"""Drops in a space that also has levels. The effect of a drop is measured, because gradients do not predict it."""

from math import inf

from evopress.search.base import Batch, SearchStep, fitness_of
from evopress.search.selection import check_any_finite
from evopress.search.switches import switched
from evopress.space.units import Profile, Space


def dropped(space: Space, profile: Profile, index: int) -> Profile:
    """`profile` without the sub-block that is unit `index`."""
    return switched(space, profile, index, 1)


def restored(space: Space, profile: Profile, index: int, *, like: int | None) -> Profile:
    """`profile` with the dropped sub-block kept, at the levels of the sub-block `like`, else at its last levels."""
    levels = list(profile)
    levels[index] = 0
    models = space.children[like] if like is not None else ()
    for place, child in enumerate(space.children[index]):
        last = len(space.units[child].levels) - 1
        levels[child] = min(last, profile[models[place]]) if place < len(models) else last
    return tuple(levels)


def measure_drop_effects(
    space: Space, profile: Profile, num_tokens: int, *, excerpt: int | None = None
) -> SearchStep[dict[int, list[float]]]:
    """The change of the KL when one sub-block alone is dropped, or restored if it is dropped; for all that may be.

    All are measured on one minibatch. Returns scores by unit, one per level, with 0 for the present state. Units inside
    a dropped sub-block have scores as well: 0 for the levels with which it was restored, and infinity for the others,
    which were not tried.
    """
    changed = {i: _with_drop_changed(space, profile, i) for i in space.children if len(space.units[i].levels) > 1}
    profiles = (profile, *changed.values())
    batch = Batch(profiles, num_tokens, f"{len(changed)} single drops", fitness="kl", excerpt=excerpt)
    base, *fitness = yield from fitness_of(batch)
    check_any_finite(fitness)
    scores: dict[int, list[float]] = {}
    for (index, other), value in zip(changed.items(), fitness, strict=True):
        scores[index] = [value - base, 0.0] if profile[index] else [0.0, value - base]
        for child in space.children[index] if profile[index] else ():
            scores[child] = [0.0 if level == other[child] else inf for level in range(len(space.units[child].levels))]
    return scores


def _with_drop_changed(space: Space, profile: Profile, index: int) -> Profile:
    """A kept sub-block is dropped; a dropped one is restored like the nearest kept one of its kind."""
    if not profile[index]:
        return dropped(space, profile, index)
    unit = space.units[index]
    kept = [i for i in space.children if space.units[i].kind == unit.kind and not profile[i]]
    nearest = min(kept, key=lambda i: abs(space.units[i].blocks[0] - unit.blocks[0]), default=None)
    return restored(space, profile, index, like=nearest)
