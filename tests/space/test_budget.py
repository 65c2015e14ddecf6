"""Budgets are exact integers: the cap is the largest cost that meets the target, and nothing above it."""

from fractions import Fraction
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from evopress.space.budget import Budget, Cap
from evopress.space.byte_sizes import parse_bytes
from evopress.space.units import Level, Space, Unit
from tests.spaces import bit_space, drop_space, sparse_space

SIZES = st.lists(st.integers(1, 10_000), min_size=1, max_size=8)
DECIMALS = st.integers(0, 1000).map(lambda n: n / 1000)


def bits(target: float) -> Budget:
    return Budget(metric="bits", target=target)


@given(SIZES, DECIMALS.map(lambda share: 2 + 2 * share), st.data())
def test_a_profile_of_bits_holds_exactly_when_its_mean_is_within_the_target(sizes, target, data):
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
def test_a_decimal_target_means_its_decimal_digits(target):
    """As binary fractions, 3.3 · 10 and 2.1 · 10 would be off by one unit in the last place."""
    (cap,) = bits(target).caps(bit_space([10]))
    assert cap.max_cost == round(target * 10)


@given(DECIMALS, st.integers(1, 6))
def test_a_sparsity_is_met_by_every_layer_at_the_target(target, num_blocks):
    space = sparse_space(num_blocks, step=10, size=100)
    (cap,) = Budget(metric="sparsity", target=target).caps(space)
    assert cap.max_cost == 2 * num_blocks * (100 - ceil(Fraction(str(target)) * 100))


def test_the_achieved_sparsity_is_the_share_of_weights_removed():
    space, budget = sparse_space(1), Budget(metric="sparsity", target=0.5)
    assert budget.achieved(space, (0, 4)) == pytest.approx(0.5)
    assert budget.holds(space, (0, 4)) and not budget.holds(space, (0, 3))
    assert budget.achieved(space, (4, 4)) == pytest.approx(0.7)


@given(st.integers(1, 20), DECIMALS)
def test_as_many_attentions_as_mlps_are_dropped(num_blocks, target):
    space = drop_space(num_blocks)
    dropped = int(Fraction(str(target)) * num_blocks + Fraction(1, 2))  # the nearest, a half upwards
    caps = Budget(metric="drop", target=target).caps(space)
    assert [cap.max_cost for cap in caps] == [num_blocks - dropped] * 2
    assert [cap.members for cap in caps] == [tuple(range(0, 2 * num_blocks, 2)), tuple(range(1, 2 * num_blocks, 2))]


def test_dropping_enough_of_one_kind_only_does_not_hold():
    space, budget = drop_space(4), Budget(metric="drop", target=0.25)
    assert budget.holds(space, (1, 0, 0, 0, 0, 1, 0, 0))
    assert not budget.holds(space, (1, 0, 1, 0, 0, 0, 0, 0))
    assert budget.achieved(space, (1, 0, 0, 0, 0, 1, 0, 0)) == 0.25


def test_a_size_covers_what_is_not_compressed_too():
    space = Space(bit_space([8000, 16000]).units, fixed_bytes=1000).with_costs_in_bytes()
    budget = Budget(metric="size", target="10KB")
    smallest, largest = (2, 2), (0, 0)
    assert budget.achieved(space, smallest) == 1000 + 2000 + 4000
    assert budget.caps(space) == (Cap((0, 1), 9000),)
    assert budget.holds(space, (1, 1)) and not budget.holds(space, largest)
    assert budget.holds(space, (0, 2)) == (1000 + 4000 + 4000 <= 10_000)


def test_members_of_a_cap_alone_count():
    space = bit_space([10, 20, 30])
    assert Cap((0, 2), 100).slack(space, (2, 0, 2)) == 100 - 20 - 60


@pytest.mark.parametrize(
    ("size", "num_bytes"),
    [
        ("80MB", 80_000_000),
        (" 1.5 GiB ", 3 * 2**29),
        ("75mib", 75 * 2**20),
        ("0.001KB", 1),
        (".5kb", 500),
        ("2.KB", 2000),
        ("4.35GB", 4_350_000_000),  # 4349999999 in floats
        ("7B", 7),
        ("12", 12),
        (1234, 1234),
        (3.5e9, 3_500_000_000),
    ],
)
def test_sizes_are_read(size, num_bytes):
    assert parse_bytes(size) == num_bytes


@pytest.mark.parametrize(
    "size", ["", "MB", "80 XB", "8O MB", "-5MB", "1,5GB", "1.2.3MB", "nan", "inf", "80MB!", "0x10"]
)
def test_what_is_no_size_is_refused(size):
    with pytest.raises(ValueError, match="is not a size: write for example 80MB"):
        parse_bytes(size)


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
def test_targets_out_of_range_are_refused(metric, target):
    with pytest.raises(ValidationError):
        Budget(metric=metric, target=target)


@pytest.mark.parametrize("target", ["3", "3.0", 3, 3.0])
def test_a_number_may_come_as_text(target):
    assert bits(target).target == 3.0


def test_a_budget_says_what_it_is():
    assert [str(bits(2.25)), str(Budget(metric="size", target="80MB"))] == ["2.25 bits", "80MB"]


@pytest.mark.parametrize(
    ("budget", "counted", "span", "message"),
    [
        (bits(3), "sparsity", (0, 1), "use budget=sparsity50"),
        (bits(3), "drop", (0, 1), "use budget=drop25"),
        (Budget(metric="sparsity", target=0.5), "bits", (2, 4), "use budget=3bit or budget=size"),
        (Budget(metric="size", target="1GB"), "sparsity", (0, 1), "use budget=sparsity50"),
        (bits(1.5), "bits", (2, 4), r"raise budget\.target to at least 2 or add a smaller width"),
        (Budget(metric="drop", target=1), "drop", (0, 0.5), r"lower budget\.target"),
    ],
)
def test_a_budget_that_the_compressor_cannot_meet_is_refused(budget, counted, span, message):
    with pytest.raises(ValueError, match=message):
        budget.check(counted, span)


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


def test_a_protected_sub_block_counts_as_kept():
    kept = Level(label="kept", value=0, cost=1, size_bytes=0)
    only = Unit(name="a", blocks=(0,), kind="mlp", layers=(), num_weights=1, levels=(kept,))
    (cap,) = Budget(metric="drop", target=0.5).caps(Space((only, only)))
    assert cap.max_cost == 1 and cap.slack(Space((only, only)), (0, 0)) == -1
