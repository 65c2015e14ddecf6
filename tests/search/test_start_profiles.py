"""Rules of start profiles, on small made-up spaces."""

from random import Random

import pytest

from evopress.search.mutation import mutants
from evopress.search.start_profiles import evenly_spaced_profile, random_profile, uniform_profile
from evopress.space.budget import Budget
from tests.spaces import BITS3, bit_space, drop_space, sparse_space


def test_a_uniform_profile_is_returned_only_if_it_spends_the_budget():
    space = bit_space([8, 8, 8])
    assert uniform_profile(space, BITS3) == (1, 1, 1)
    assert uniform_profile(space, Budget(metric="bits", target=2.67)) is None
    assert uniform_profile(bit_space([8, 8], (8, 4, 2)), BITS3) is None
    assert uniform_profile(space, Budget(metric="bits", target=9)) == (0, 0, 0)


def test_fractional_targets_lower_as_few_units_as_needed_evenly_spaced():
    space = bit_space([8] * 10)
    profile = evenly_spaced_profile(space, Budget(metric="bits", target=2.6))
    assert space.cost(profile) == 26 * 8
    assert profile == (1, 2, 1, 2, 1, 1, 2, 1, 2, 1)  # the same from both ends


@pytest.mark.parametrize("target", [2.1, 2.37, 2.6, 2.95, 3.4, 4.9, 6.2])
def test_units_of_unequal_size_save_evenly_and_spend_the_budget(target):
    sizes = [40, 12, 96, 48]
    space, budget = bit_space(sizes * 15, (8, 4, 2)), Budget(metric="bits", target=target)
    profile = evenly_spaced_profile(space, budget)
    levels = sorted(set(profile))
    assert len(levels) == 2 and levels[1] == levels[0] + 1
    (cap,) = budget.caps(space)
    slack = cap.slack(space, profile)
    widths = (8, 4, 2)
    gain = widths[levels[0]] - widths[levels[1]]
    assert 0 <= slack < min(size * gain for size, level in zip(sizes * 15, profile, strict=True) if level == levels[1])
    saved = due = 0.0
    for size, level in zip(sizes * 15, profile, strict=True):
        saved += size * gain * (level == levels[1])
        due += size * (widths[levels[0]] - target)
        assert abs(saved - due) <= 2 * max(sizes) * gain


def test_drop_profiles_drop_as_many_attentions_as_mlps():
    space, budget = drop_space(10), Budget(metric="drop", target=0.25)
    for seed in range(20):
        rng = Random(seed)
        parent = random_profile(space, budget, rng)
        for profile in [parent, *mutants(space, budget.caps(space), [parent], count=8, rng=rng, max_switches=3)]:
            assert [sum(profile[i] for i in members) for members in space.trade_groups.values()] == [3, 3]


def test_an_error_names_what_an_out_of_reach_budget_could_be():
    with pytest.raises(ValueError, match=r"most compressed profile has 2: raise budget.target"):
        evenly_spaced_profile(bit_space([8, 8]), Budget(metric="bits", target=1.5))
    with pytest.raises(ValueError, match=r"has 0.7: lower budget.target$"):
        evenly_spaced_profile(sparse_space(2), Budget(metric="sparsity", target=0.8))
    large = bit_space([8_000_000] * 2).with_costs_in_bytes()
    with pytest.raises(ValueError, match=r"is 1MB but the most compressed profile has 4000000 bytes: raise"):
        evenly_spaced_profile(large, Budget(metric="size", target="1MB"))
