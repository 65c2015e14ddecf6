"""Budgets are exact integers: a cap is the largest cost that meets the target."""

from fractions import Fraction
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from evopress.search.start_profiles import evenly_spaced_profile
from evopress.space.budget import Budget, Cap
from evopress.space.units import Level, Space, Unit
from tests.spaces import bit_space, drop_space, sparse_space

SIZES = st.lists(st.integers(1, 10_000), min_size=1, max_size=8)
DECIMALS = st.integers(0, 1000).map(lambda n: n / 1000)


def bits(target: float) -> Budget:
    return Budget(metric="bits", target=target)


@given(SIZES, DECIMALS.map(lambda share: 2 + 2 * share), st.data())
def test_a_budget_of_bits_holds_exactly_if_the_mean_is_at_most_the_target(sizes, target, data):
    space = bit_space(sizes)
    profile = tuple(data.draw(st.integers(0, 2)) for _ in sizes)
    spent = sum(size * (4 - level) for size, level in zip(sizes, profile, strict=True))
    budget = bits(target)
    assert budget.holds(space, profile) == (Fraction(spent, sum(sizes)) <= Fraction(str(target)))
    assert budget.achieved(space, profile) == spent / sum(sizes)
    (cap,) = budget.caps(space)
    assert cap.members == tuple(range(len(sizes)))
    assert cap.max_cost <= Fraction(str(target)) * sum(sizes) < cap.max_cost + 1
    assert cap.slack(space, profile) == cap.max_cost - spent


@pytest.mark.parametrize("target", [3.3, 2.1, 2.7])
def test_a_decimal_target_is_exact(target):
    """As binary fractions, 3.3 · 10 and 2.1 · 10 would be off by one unit in the last place."""
    (cap,) = bits(target).caps(bit_space([10]))
    assert cap.max_cost == round(target * 10)


@given(DECIMALS, st.integers(1, 6))
def test_the_cap_of_a_sparsity_is_the_cost_with_every_layer_at_the_target(target, num_blocks):
    space = sparse_space(num_blocks, step=10, size=100)
    (cap,) = Budget(metric="sparsity", target=target).caps(space)
    assert cap.max_cost == 2 * num_blocks * (100 - ceil(Fraction(str(target)) * 100))


def test_the_achieved_sparsity_is_the_share_of_weights_removed():
    space, budget = sparse_space(1), Budget(metric="sparsity", target=0.5)
    assert budget.achieved(space, (0, 4)) == pytest.approx(0.5)
    assert budget.holds(space, (0, 4)) and not budget.holds(space, (0, 3))
    assert budget.achieved(space, (4, 4)) == pytest.approx(0.7)


@given(st.integers(1, 20), DECIMALS)
def test_equally_many_attentions_and_mlps_are_dropped(num_blocks, target):
    space = drop_space(num_blocks)
    dropped = int(Fraction(str(target)) * num_blocks + Fraction(1, 2))  # the nearest, a half upwards
    caps = Budget(metric="drop", target=target).caps(space)
    assert [cap.max_cost for cap in caps] == [num_blocks - dropped] * 2
    assert [cap.members for cap in caps] == [tuple(range(0, 2 * num_blocks, 2)), tuple(range(1, 2 * num_blocks, 2))]


def test_dropping_enough_units_of_only_one_kind_does_not_hold():
    space, budget = drop_space(4), Budget(metric="drop", target=0.25)
    assert budget.holds(space, (1, 0, 0, 0, 0, 1, 0, 0))
    assert not budget.holds(space, (1, 0, 1, 0, 0, 0, 0, 0))
    assert budget.achieved(space, (1, 0, 0, 0, 0, 1, 0, 0)) == 0.25


def test_a_size_includes_what_is_not_compressed():
    space = Space(bit_space([8000, 16000]).units, fixed_bytes=1000).with_costs_in_bytes()
    budget = Budget(metric="size", target="10KB")
    smallest, largest = (2, 2), (0, 0)
    assert budget.achieved(space, smallest) == 1000 + 2000 + 4000
    assert budget.caps(space) == (Cap((0, 1), 9000),)
    assert budget.holds(space, (1, 1)) and not budget.holds(space, largest)
    assert budget.holds(space, (0, 2)) == (1000 + 4000 + 4000 <= 10_000)


def test_a_cap_counts_only_its_members():
    space = bit_space([10, 20, 30])
    assert Cap((0, 2), 100).slack(space, (2, 0, 2)) == 100 - 20 - 60


@pytest.mark.parametrize(
    ("metric", "target"),
    [
        ("bits", -1),
        ("bits", 33),
        ("bits", float("nan")),
        ("bits", "3MB"),
        ("bits", "three"),
        ("sparsity", 1.5),
        ("sparsity", 50),
        ("drop", -0.1),
        ("drop", "25%"),
        ("size", "big"),
        ("size", "80 XB"),
        ("size", float("inf")),
        ("width", 3),
        ("bits", None),
    ],
)
def test_a_target_out_of_range_is_rejected(metric, target):
    with pytest.raises(ValidationError):
        Budget(metric=metric, target=target)


@pytest.mark.parametrize("target", ["3", "3.0", 3, 3.0])
def test_a_number_may_be_a_string(target):
    assert bits(target).target == 3.0


def test_a_budget_prints_its_target_and_metric():
    assert [str(bits(2.25)), str(Budget(metric="size", target="80MB"))] == ["2.25 bits", "80MB"]


@pytest.mark.parametrize(
    ("budget", "counted", "span", "message"),
    [
        (bits(3), "sparsity", (0, 1), "use budget=sparsity50"),
        (bits(3), "drop", (0, 1), "use budget=drop25"),
        (Budget(metric="sparsity", target=0.5), "bits", (2, 4), "use budget=3bit or budget=size"),
        (Budget(metric="size", target="1GB"), "sparsity", (0, 1), "use budget=sparsity50"),
        (bits(1.5), "bits", (2, 4), r"raise budget\.target to at least 2 or add a smaller level to compress\.bits"),
        (Budget(metric="drop", target=1), "drop", (0, 0.5), r"lower budget\.target"),
    ],
)
def test_a_budget_that_the_compressor_cannot_meet_is_rejected(budget, counted, span, message):
    with pytest.raises(ValueError, match=message):
        budget.check(counted, span, key="compress.bits")


@pytest.mark.parametrize(
    ("budget", "counted", "span"),
    [
        (bits(2), "bits", (2, 4)),
        (bits(4), "bits", (2, 4)),
        (Budget(metric="size", target="1GB"), "bits", (2, 4)),
        (Budget(metric="sparsity", target=0.7), "sparsity", (0, 1)),
        (Budget(metric="drop", target=0.25), "drop", (0, 1)),
    ],
)
def test_a_budget_that_the_compressor_can_meet_is_accepted(budget, counted, span):
    budget.check(counted, span)


def test_a_budget_above_the_largest_level_is_accepted_with_a_warning(caplog):
    bits(4).check("bits", (2, 4))
    assert not caplog.text
    bits(5).check("bits", (2, 4))
    assert "budget.target is 5 bits but the largest level is 4" in caplog.text


def test_a_protected_sub_block_counts_as_kept():
    kept = Level(label="kept", value=0, cost=1, size_bytes=0)
    only = Unit(name="a", blocks=(0,), kind="mlp", layers=(), num_weights=1, levels=(kept,))
    (cap,) = Budget(metric="drop", target=0.5).caps(Space((only, only)))
    assert cap.max_cost == 1 and cap.slack(Space((only, only)), (0, 0)) == -1


@pytest.mark.parametrize("target", [0.125, 0.25, 0.3, 0.375, 0.5])
def test_profiles_that_spend_a_budget_of_drops_hold_in_sum_for_every_depth(target):
    """The numbers of attentions and of MLPs are rounded, so their sum need not be the rounded number of both."""
    budget = Budget(metric="drop", target=target)
    for num_blocks in range(1, 50):
        space = drop_space(num_blocks)
        profile = evenly_spaced_profile(space, budget)
        assert budget.holds(space, profile) and budget.holds_in_sum(space, profile)
        dropped = [index for index, level in enumerate(profile) if level]
        if dropped:
            restored = tuple(0 if index == dropped[0] else level for index, level in enumerate(profile))
            assert not budget.holds_in_sum(space, restored)
