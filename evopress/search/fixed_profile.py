"""A profile from a file, so that profiles from elsewhere are evaluated in the same way."""

from pathlib import Path
from random import Random

from evopress.runtime.config_class import UserPath, config_class
from evopress.search.base import Search, SearchRun
from evopress.search.start_profiles import uniform_profile
from evopress.space.budget import Budget
from evopress.space.profile_files import from_json, from_text
from evopress.space.units import Space


@config_class
class FixedProfile(Search):
    """Reads `path`: a `profile.json` or `profile.txt` of this program, or a text file of the paper's authors.

    Raises ValueError if the file does not fit the model, or if the profile exceeds the budget.
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
            zero = uniform_profile(space, budget) if budget.metric == "sparsity" else None
            profile = from_json(space, text) if text.lstrip().startswith("{") else from_text(space, text, zero)
        except ValueError as error:
            raise ValueError(f"search.path {self.path}: {error}") from error
        if not budget.holds(space, profile):
            raise ValueError(
                f"search.path {self.path} has {budget.achieved(space, profile):g} {budget.metric}, above "
                f"budget.target={budget.target}: set budget.target to at least that"
            )
        return profile
        yield  # makes this a generator
