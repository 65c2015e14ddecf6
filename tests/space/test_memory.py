"""A budget of memory counts weights, the cache of kept attentions and a reserve, in exact integers."""

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from evopress.compressors.drop import Drop
from evopress.compressors.rtn import RTN
from evopress.models.attention_cache import AttentionCache
from evopress.search.caps import caps_on_levels
from evopress.search.knapsack import solve_knapsack
from evopress.search.start_profiles import evenly_spaced_profile
from evopress.space.attention_costs import with_attention_costs
from evopress.space.build import drop_space, layer_space
from evopress.space.memory import CACHE_TYPES, PROMPT_TOKENS, MemoryBudget
from evopress.space.settings import SpaceSettings
from evopress.space.units import Profile, Space
from tests.spaces import joint_space
from tests.tiny_models import tiny

CACHES = [AttentionCache(64, None), AttentionCache(64, 8), AttentionCache(0, None)]


def memory(target: float | str, **settings: object) -> MemoryBudget:
    return MemoryBudget(target=target, **{"reserve": 0, "context": 1000, **settings})


def priced(num_blocks: int = 2, cache: int = 0) -> Space:
    """Attentions and MLPs with levels of 16, 12 and 8 bytes, and a cache for every attention."""
    space = replace(joint_space(num_blocks, sizes=(32,)), fixed_bytes=5).with_costs_in_bytes()
    return with_attention_costs(space, [cache] * num_blocks)


def all_profiles(space: Space) -> list[Profile]:
    every = product(*(range(len(unit.levels)) for unit in space.units))
    return [profile for profile in every if profile == space.normalized(profile)]


@given(st.sampled_from(sorted(CACHE_TYPES)), st.integers(1, 5000), st.integers(1, 5))
def test_a_cache_has_every_number_of_every_token_of_every_sequence(kv, context, batch):
    per_number = {"f16": 2, "bf16": 2, "fp8": 1, "q8_0": 34 / 32, "q4_0": 18 / 32}[kv]
    full, sliding, none = memory(1, kv=kv, context=context, batch=batch).cache_bytes(CACHES)
    assert full == 64 * per_number * context * batch
    assert sliding == 64 * per_number * min(8 + PROMPT_TOKENS, context) * batch
    assert none == 0


@given(st.integers(0, 100), st.integers(0, 50), st.integers(0, 200))
def test_a_profile_holds_exactly_if_its_parts_fit(cache, reserve, target):
    space, budget = priced(cache=cache), memory(target, reserve=reserve)
    for profile in all_profiles(space)[::7]:
        parts = budget.parts(space, profile)
        kept = sum(not profile[i] for i, unit in enumerate(space.units) if unit.kind == "attention")
        assert parts == {"weights": space.size_bytes(profile), "cache": cache * kept, "reserve": reserve}
        assert budget.achieved(space, profile) == sum(parts.values())
        assert budget.holds(space, profile) == (sum(parts.values()) <= target)


@pytest.mark.parametrize("drops", ["none", "subblock", "block"])
def test_the_cache_of_a_model_is_counted_whatever_may_be_dropped(drops):
    lm = tiny("llama")
    settings = SpaceSettings(drops=drops, trade="any")
    space = with_attention_costs(
        layer_space(lm, RTN(bits=[2, 4], group_size=32), settings).with_costs_in_bytes(), [10, 20, 30]
    )
    budget = memory("1MB")
    assert budget.parts(space, space.uniform(0))["cache"] == 60
    without_first = tuple(int(i == 0) if unit.layers == () else 0 for i, unit in enumerate(space.units))
    assert budget.parts(space, without_first)["cache"] == (60 if drops == "none" else 50)


@pytest.mark.parametrize("granularity", ["subblock", "block"])
def test_dropped_parts_of_a_model_are_credited_with_their_cache(granularity):
    space = drop_space(tiny("llama"), Drop(granularity=granularity)).with_costs_in_bytes()
    space = with_attention_costs(space, [10, 20, 30])
    budget = memory("1MB")
    assert budget.parts(space, space.uniform(0))["cache"] == 60
    assert budget.parts(space, (1, *(0 for _ in space.units[1:])))["cache"] == 50


@given(st.integers(0, 60), st.lists(st.floats(-1, 1), min_size=40, max_size=40), st.integers(0, 90))
def test_the_knapsack_weighs_caches_exactly(cache, errors, spare):
    space = priced(cache=cache)
    cheapest = min(space.cost(profile) for profile in all_profiles(space))
    budget = memory(space.fixed_bytes + cheapest + spare)
    numbers = iter(errors)
    scores = [[next(numbers) for _ in unit.levels] for unit in space.units]

    def total(profile: Profile) -> float:
        return sum(scores[i][level] for i, level in enumerate(profile) if not space.is_inside_dropped(i, profile))

    best = min(total(profile) for profile in all_profiles(space) if budget.holds(space, profile))
    solved = space.normalized(solve_knapsack(space, budget.caps(space), scores))
    assert budget.holds(space, solved)
    assert total(solved) == pytest.approx(best)


def test_attentions_are_dropped_where_the_context_is_long():
    """Every drop does the same harm. MLPs have more bytes of weights, so they go first until caches weigh more."""
    harm = [[0.0, 1.0] if unit.layers == () else [0.0, 0.1, 0.2] for unit in joint_space(4).units]

    def dropped(cache: int) -> set[str]:
        space = replace(joint_space(4), units=tuple(_with_larger_mlps(joint_space(4)))).with_costs_in_bytes()
        space = with_attention_costs(space, [cache] * 4)
        target = space.cost(space.uniform(2)) - 20  # a bit less than levels alone reach
        profile = solve_knapsack(space, memory(target).caps(space), harm)
        return {unit.kind for unit, level in zip(space.units, profile, strict=True) if unit.layers == () and level}

    assert dropped(0) == {"mlp"}
    assert dropped(1000) == {"attention"}


def _with_larger_mlps(space: Space):
    for unit in space.units:
        factor = 3 if "mlp" in unit.name else 1
        levels = tuple(replace(level, size_bytes=factor * level.size_bytes) for level in unit.levels)
        yield replace(unit, levels=levels)


@given(st.integers(0, 60), st.integers(20, 200))
def test_caps_on_levels_leave_room_for_the_caches_of_kept_attentions(cache, target):
    space = priced(cache=cache)
    caps = memory(target).caps(space)
    for profile in all_profiles(space)[::5]:
        (on_levels,) = caps_on_levels(space, caps, profile)
        assert on_levels.slack(space, profile) == caps[0].slack(space, profile)


def test_a_start_profile_drops_attentions_if_caches_leave_no_other_way():
    space = priced(cache=1000)
    budget = memory(1100)
    profile = evenly_spaced_profile(space, budget)
    assert budget.holds(space, profile)
    assert sum(unit.kind == "attention" and level for unit, level in zip(space.units, profile, strict=True)) >= 1


@pytest.mark.parametrize(
    "settings",
    [{"kv": "q3"}, {"context": 0}, {"batch": 0}, {"reserve": "much"}, {"target": "3 bits"}, {"metric": "size"}],
)
def test_settings_that_mean_nothing_are_refused(settings):
    with pytest.raises(ValidationError):
        MemoryBudget(**{"target": "1GB", **settings})


def test_an_amount_names_its_parts():
    text = memory("1MB", reserve="2MB").amount(priced(cache=1500), priced().uniform(0))
    assert text == "2.0 MB (weights 69 B, cache 3.0 KB, reserve 2.0 MB)"
