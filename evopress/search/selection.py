"""Selection by fitness: the fittest first, and the multi-step selection of Algorithm 2."""

from collections.abc import Sequence
from math import isfinite, isnan

from pydantic import Field

from evopress.runtime.config_class import config_class
from evopress.search.base import Batch, SearchStep, fitness_of
from evopress.space.units import Profile


def best_first(profiles: Sequence[Profile], fitness: Sequence[float], sign: float = 1.0) -> list[Profile]:
    """Sorted by `sign` · fitness, NaN last. Profiles of equal fitness keep their order."""
    order = sorted(range(len(profiles)), key=lambda i: (isnan(fitness[i]), sign * fitness[i]))
    return [profiles[i] for i in order]


def check_any_finite(fitness: Sequence[float]) -> None:
    """Raises ValueError if no fitness is finite, because then no profile can be chosen."""
    if not any(map(isfinite, fitness)):
        raise ValueError(
            f"the fitness of all {len(fitness)} candidates is NaN or infinite, so none can be chosen: set "
            f"model.dtype=float32, or leave the most compressed levels out of the compressor's settings"
        )


@config_class
class Stage:
    """One step of the selection: how many candidates survive it, and on how many tokens they are compared."""

    survivors: int = Field(gt=0)
    tokens: int = Field(gt=0)


def select_survivors(
    parents: Sequence[Profile],
    offspring: Sequence[Profile],
    *,
    stages: Sequence[Stage],
    label: str,
    excerpt: int | None = None,
    sign: float = 1.0,
) -> SearchStep[list[Profile]]:
    """The profiles that survive all stages, fittest first. The parents join in the last stage.

    Each stage has a fresh minibatch. The fittest have the lowest `sign` · fitness.

    Source: arXiv 2410.14649, Algorithm 1.
    """
    candidates = list(offspring)
    for number, stage in enumerate(stages, start=1):
        if number == len(stages):
            candidates = [*parents, *candidates]
        stage_label = f"{label}, stage {number}/{len(stages)}"
        decisive = number == len(stages) and sign > 0
        batch = Batch(tuple(candidates), stage.tokens, stage_label, excerpt=excerpt, decisive=decisive)
        fitness = yield from fitness_of(batch)
        candidates = best_first(candidates, fitness, sign)[: stage.survivors]
    check_any_finite(fitness)
    return candidates
