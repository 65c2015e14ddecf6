"""Searches with small settings, for tests."""

from evopress.search.evolution import Evolution
from evopress.search.guided import Guided
from evopress.search.refinement import Refinement
from evopress.search.selection import Stage
from evopress.space.budget import Budget
from evopress.space.units import Profile, Space

REFINEMENT = Refinement(table_tokens=32, share=0.5, tokens=32, line_tokens=64)


def guided(**changes) -> Guided:
    """A guided search with these settings changed."""
    defaults = dict(
        rounds=2,
        table_tokens=32,
        dampings=[1.0, 4.0],
        line_tokens=32,
        generations=3,
        offspring=4,
        stages=[Stage(survivors=2, tokens=32), Stage(survivors=1, tokens=64)],
    )
    return Guided(**{**defaults, **changes})


def evolution(**changes) -> Evolution:
    """The paper's search with these settings changed."""
    defaults = dict(
        generations=20,
        offspring=8,
        stages=[Stage(survivors=3, tokens=10), Stage(survivors=1, tokens=40)],
        initial_candidates=8,
        initial_tokens=20,
    )
    return Evolution(**{**defaults, **changes})


def spends_budget(space: Space, budget: Budget, profile: Profile) -> bool:
    """Whether no unit could go to a costlier level within the budget."""
    return all(
        space.units[i].levels[level].cost - space.units[i].levels[profile[i]].cost > cap.slack(space, profile)
        for cap in budget.caps(space)
        for i in cap.members
        for level in range(profile[i])
    )
