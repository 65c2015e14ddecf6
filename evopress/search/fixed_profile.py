"""Reads a profile from a file, so that profiles from elsewhere are evaluated in the same way."""

from pathlib import Path
from random import Random

from evopress.runtime.config_class import UserPath, config_class
from evopress.search.base import Search, SearchRun
from evopress.search.start_profiles import uniform_profile
from evopress.space.budget import Budget
from evopress.space.profile_files import from_json, from_text
from evopress.space.units import Profile, Space


@config_class
class FixedProfile(Search):
    """Reads `path`: a `profile.json` or `profile.txt` of this program, or a text file of the paper's authors.

    A profile of drops may drop any sub-blocks, as long as enough are dropped in all. Raises ValueError if the file does
    not fit the model, or if the profile exceeds the budget.
    """

    path: UserPath

    def num_questions(self, space: Space, budget: Budget) -> int:
        return 0

    def run(self, space: Space, budget: Budget, rng: Random) -> SearchRun:
        file = Path(self.path)
        if not file.is_file():
            raise ValueError(f"search.path {self.path!r} is not a file: set it to a profile.json or profile.txt")
        try:
            text = file.read_text(encoding="utf-8")
            uniform = uniform_profile(space, budget) if budget.metric == "sparsity" else None
            profile = from_json(space, text) if text.lstrip().startswith("{") else from_text(space, text, uniform)
        except ValueError as error:
            raise ValueError(f"search.path {self.path}: {error}") from error
        if not budget.holds_in_sum(space, profile):
            raise ValueError(f"search.path {self.path} {_excess(space, budget, profile)}")
        return profile
        yield  # makes this a generator


def _excess(space: Space, budget: Budget, profile: Profile) -> str:
    """The end of an error message: what a profile achieves, and which targets it would meet."""
    amount = budget.amount(space, profile)
    if budget.metric in ("drop", "sparsity"):
        removed = "drops" if budget.metric == "drop" else "removes"
        return (
            f"{removed} {amount} of the model, less than budget.target={budget.target}: set budget.target to at "
            f"most {amount}, or give a profile that {removed} more"
        )
    measured = f"has {amount} bits per weight" if budget.metric == "bits" else f"takes {amount}"
    return f"{measured}, above budget.target={budget.target}: set budget.target to at least that"
