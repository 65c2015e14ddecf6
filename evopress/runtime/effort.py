"""The effort of a run: how much its search and its tuning may cost together, in token equivalents or in time."""

import re
from dataclasses import dataclass
from math import inf

UNITS = {"": 1.0, "k": 1e3, "M": 1e6}
"""Units of token equivalents."""

SECONDS = {"min": 60.0, "h": 3600.0}
"""Units of time."""


@dataclass(frozen=True)
class Effort:
    """An upper limit of token equivalents and of seconds."""

    token_equivalents: float = inf
    seconds: float = inf

    def times(self, share: float) -> "Effort":
        """A share of the effort."""
        return Effort(share * self.token_equivalents, share * self.seconds)

    def minus(self, *, token_equivalents: float, seconds: float) -> "Effort":
        """What is left of the effort; 0 if more was spent."""
        return Effort(max(0.0, self.token_equivalents - token_equivalents), max(0.0, self.seconds - seconds))

    def is_reached(self, *, token_equivalents: float = 0.0, seconds: float = 0.0) -> bool:
        """Whether this much is all of it, or more."""
        return token_equivalents >= self.token_equivalents or seconds >= self.seconds


def parse_effort(effort: object) -> Effort:
    """60k → 60 000 token equivalents; 30min → 1800 seconds; None → no limit. Raises ValueError for anything else."""
    if effort is None:
        return Effort()
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(k|M|min|h|)", str(effort).strip())
    if match is None or isinstance(effort, bool) or float(match[1]) == 0:
        raise ValueError(
            f"effort is {effort!r}: give token equivalents such as 60k, 300k or 3M, a time such as 30min or 2h, or "
            "null for no limit"
        )
    amount, unit = float(match[1]), match[2]
    return Effort(seconds=amount * SECONDS[unit]) if unit in SECONDS else Effort(amount * UNITS[unit])
