"""`effort` is an amount of token equivalents or of time."""

from math import inf

import pytest

from evopress.runtime.effort import Effort, parse_effort


@pytest.mark.parametrize(
    ("given", "effort"),
    [
        (None, Effort()),
        ("60k", Effort(token_equivalents=60_000)),
        ("2.5M", Effort(token_equivalents=2_500_000)),
        (1500, Effort(token_equivalents=1500)),
        ("30min", Effort(seconds=1800)),
        ("1.5 h", Effort(seconds=5400)),
    ],
)
def test_amounts_have_units(given, effort):
    assert parse_effort(given) == effort


@pytest.mark.parametrize("given", ["", "soon", "60 kilo", "-3M", "0", "0h", "30m", True, False, [1], 0, "1e5", "3mins"])
def test_other_values_are_refused_with_what_is_right(given):
    with pytest.raises(
        ValueError, match=r"effort is .*: give token equivalents such as 60k.*a time such as 30min.*null"
    ):
        parse_effort(given)


def test_a_limit_is_reached_by_either_unit_and_what_is_left_is_never_negative():
    limit = Effort(token_equivalents=10, seconds=5)
    assert not limit.is_reached(token_equivalents=9, seconds=4)
    assert limit.is_reached(token_equivalents=10)
    assert limit.is_reached(seconds=5)
    assert limit.times(0.5) == Effort(5, 2.5)
    assert limit.minus(token_equivalents=4, seconds=9) == Effort(6, 0)
    assert Effort().times(0.5) == Effort(inf, inf)
    assert not Effort().is_reached(token_equivalents=1e12, seconds=1e12)
