"""The grids of K types: no quantiser of ggml has a smaller weighted error, and odd weights do no harm."""

import pytest
import torch
from torch import Tensor

from evopress.compressors.k_search import search_superblocks
from evopress.weights.k_types import K_TYPES, SUPERBLOCK
from evopress.weights.kquants import KWeight
from tests.ggml_library import round_by_ggml
from tests.k_weights import k_weight, random_parts

NAMES = list(K_TYPES)

GGML_ERRORS = {
    "normal": {"Q6_K": 0.0002989, "Q5_K": 0.001256, "Q4_K": 0.005064, "Q3_K": 0.02095, "Q2_K": 0.07275},
    "heavy": {"Q6_K": 0.0004571, "Q5_K": 0.001662, "Q4_K": 0.005913, "Q3_K": 0.02171, "Q2_K": 0.05609},
}
"""`relative_error` of ggml's quantisers for `made` weights, with an importance matrix (llama-cpp-python 0.3.36)."""


def made(kind: str, rows: int = 48) -> tuple[Tensor, Tensor]:
    """Weights (rows, 512) and the powers of their inputs: equal powers, or heavy tails of both."""
    generator = torch.Generator().manual_seed(0)
    W, powers = torch.randn(rows, 512, generator=generator), torch.randn(512, generator=generator)
    return (W, torch.ones(512)) if kind == "normal" else (W * W.abs() / 50, (1.5 * powers).exp())


def rounded(W: Tensor, power: Tensor, name: str) -> KWeight:
    grid = search_superblocks(W.t(), power, type_name=name)
    return grid.weight(grid.encode(W.t()))


def relative_error(weight: KWeight, W: Tensor, power: Tensor) -> float:
    """Σ p·(w − ŵ)² / Σ p·w² after decoding."""
    lost = (weight.dense().double() - W).square() * power
    return float(lost.sum() / (W.double().square() * power).sum())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", GGML_ERRORS)
def test_the_error_is_below_that_of_the_quantiser_of_ggml(kind, name):
    W, power = made(kind)
    assert relative_error(rounded(W, power, name), W, power) < GGML_ERRORS[kind][name]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", GGML_ERRORS)
def test_the_errors_of_ggml_are_those_that_its_library_has(kind, name):
    W, power = made(kind)
    theirs = relative_error(round_by_ggml(W, name, importance=power), W, power)
    assert theirs == pytest.approx(GGML_ERRORS[kind][name], rel=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_weights_get_the_nearest_values_of_their_grid(name):
    W, power = made("normal", rows=4)
    kind, grid = K_TYPES[name], search_superblocks(W.t(), power, type_name=name)
    q = torch.arange(kind.low, kind.high + 1.0)
    points = grid.steps().unsqueeze(-1) * q + grid.offsets().unsqueeze(-1)  # (superblocks, sub-blocks, rows, codes)
    blocks = W.t().unflatten(0, (-1, kind.num_sub_blocks, kind.sub_block))
    nearest = (blocks.unsqueeze(-1) - points.unsqueeze(2)).abs().amin(-1).flatten(0, 2).t()
    torch.testing.assert_close((rounded(W, power, name).dense() - W).abs(), nearest, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_weights_that_the_type_holds_exactly_lose_little(name):
    W = k_weight(name, random_parts(name, rows=30)).dense()
    W, power = W.view(30, -1), torch.ones(W.shape[1])
    assert relative_error(rounded(W, power, name), W, power) < 0.2 * GGML_ERRORS["normal"][name]


@pytest.mark.parametrize("name", NAMES)
def test_rows_do_not_affect_each_other(name):
    W, power = made("heavy", rows=5)
    together, alone = rounded(W, power, name), torch.cat([rounded(row, power, name).data for row in W.split(1)])
    errors = (relative_error(weight, W, power) for weight in (together, KWeight(alone, name)))
    assert next(errors) == pytest.approx(next(errors), rel=1e-4)


def test_the_unit_of_the_powers_does_not_matter_and_inputs_that_are_always_zero_count_alike():
    W, power = made("heavy", rows=4)
    for name in NAMES:
        assert torch.equal(rounded(W, power * 2**20, name).data, rounded(W, power, name).data)
        assert torch.equal(rounded(W, power * 0, name).data, rounded(W, torch.ones_like(power), name).data)


@pytest.mark.parametrize("name", NAMES)
def test_sub_blocks_without_inputs_are_rounded_too(name):
    W, power = made("normal", rows=4)
    power[64:96] = 0
    part = rounded(W, power, name).dense()[:, 64:96]
    assert float((part - W[:, 64:96]).abs().max()) < 2


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e30, 3.0, -3.0])
@pytest.mark.parametrize("name", NAMES)
def test_constant_and_extreme_weights_stay_finite(name, value):
    W = torch.full((2, SUPERBLOCK), value)
    dense = rounded(W, torch.ones(SUPERBLOCK), name).dense()
    assert bool(dense.isfinite().all())
    if abs(value) < 10:
        assert float((dense - W).abs().max()) <= max(abs(value) / 100, 1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_small_weights_are_rounded_well_although_their_float16_factors_are_coarse(name):
    W, power = made("normal", rows=8)
    for factor in (1e-3, 1e-5):
        error = relative_error(rounded(factor * W, power, name), factor * W, power)
        assert error < 1.3 * GGML_ERRORS["normal"][name], factor


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_one_sign_fit_their_grid(name):
    W = torch.linspace(1, 2, 2 * SUPERBLOCK).view(2, -1)
    for weights in (W, -W):
        assert float((rounded(weights, torch.ones(SUPERBLOCK), name).dense() - weights).abs().max()) <= 0.4


@pytest.mark.parametrize("name", NAMES)
def test_the_search_never_waits_for_a_device(name):
    """A tensor on the device `meta` has no values to read."""
    grid = search_superblocks(torch.empty(512, 8, device="meta"), torch.empty(512, device="meta"), type_name=name)
    assert grid.scales.device.type == "meta" and grid.scales.shape == (2, K_TYPES[name].num_sub_blocks, 8)
