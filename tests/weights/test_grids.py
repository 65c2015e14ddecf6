import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evopress.weights.grids import fit_grid, max_codes
from evopress.weights.packing import num_words, pack, unpack


@st.composite
def codes_and_bits(draw):
    bits = draw(st.integers(2, 8))
    shape = draw(st.integers(1, 5)), draw(st.integers(1, 130))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    return torch.randint(0, 2**bits, shape, generator=generator, dtype=torch.uint8), bits


@settings(deadline=None)
@given(codes_and_bits())
def test_packing_is_undone_by_unpacking(case):
    codes, bits = case
    packed = pack(codes, bits)
    assert packed.dtype == torch.int32
    assert packed.shape == (len(codes), num_words(codes.shape[1], bits))
    assert torch.equal(unpack(packed, bits, cols=codes.shape[1]), codes)


@settings(deadline=None)
@given(codes_and_bits())
def test_packed_layout_is_that_of_compressed_tensors(case):
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    codes, bits = case
    signed = (codes.to(torch.int16) - 2 ** (bits - 1)).to(torch.int8)
    assert torch.equal(pack(codes, bits), helpers.pack_to_int32(signed, bits))


def test_transposed_codes_can_be_packed():
    codes = torch.randint(0, 8, (9, 21), dtype=torch.uint8)
    assert torch.equal(pack(codes.t(), 3), pack(codes.t().contiguous(), 3))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", range(2, 9))
def test_rounding_inside_the_range_is_off_by_half_a_step_at_most(bits, symmetric):
    W = torch.randn(4, 64, 10, generator=torch.Generator().manual_seed(0))
    grid = fit_grid(W, max_codes([bits], rows=10, device=W.device), symmetric=symmetric, scale_dtype=torch.float32)
    for group in range(4):
        scale = grid.scale[group]
        one = type(grid)(scale, grid.zero[group], grid.max_code)
        codes = one.encode(W[group])
        assert codes.min() >= 0 and codes.max() <= 2**bits - 1 and torch.equal(codes, codes.round())
        off = (one.decode(codes) - W[group]).abs() / scale
        # Asymmetric: a rounded zero point may shift the range by half a step. Symmetric: no code for the highest value.
        assert off.max() <= 1 + 1e-4
        assert (off <= 0.5 + 1e-4).float().mean() > 0.95


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scales_are_exact_in_the_type_they_are_stored_in(dtype):
    W = torch.randn(32, 50, generator=torch.Generator().manual_seed(0))
    scale = fit_grid(W, max_codes([3], rows=50, device=W.device), symmetric=False, scale_dtype=dtype).scale
    assert torch.equal(scale, scale.to(dtype).float())


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("value", [0.0, 1e-40, 1e-9, -1e-6, 1e6, -3e38])
def test_odd_ranges_give_finite_grids(value, symmetric):
    W = torch.full((16, 3), value)
    grid = fit_grid(W, max_codes([4], rows=3, device=W.device), symmetric=symmetric, scale_dtype=torch.float16)
    decoded = grid.decode(grid.encode(W))
    assert bool((grid.scale > 0).all()) and bool(grid.scale.half().isfinite().all()) and bool(decoded.isfinite().all())
    if value == 0:
        assert torch.equal(decoded, W)


@pytest.mark.parametrize("symmetric", [False, True])
def test_zero_stays_zero(symmetric):
    W = torch.randn(16, 40, generator=torch.Generator().manual_seed(1)).abs()
    W[3] = 0
    grid = fit_grid(W, max_codes([2], rows=40, device=W.device), symmetric=symmetric, scale_dtype=torch.float16)
    assert not grid.decode(grid.encode(W))[3].any()


def test_levels_fitted_together_equal_levels_fitted_alone():
    W = torch.randn(16, 5, generator=torch.Generator().manual_seed(2))
    together = fit_grid(
        W.repeat(1, 2), max_codes([2, 7], rows=5, device=W.device), symmetric=False, scale_dtype=torch.float16
    )
    for level, bits in enumerate((2, 7)):
        alone = fit_grid(W, max_codes([bits], rows=5, device=W.device), symmetric=False, scale_dtype=torch.float16)
        assert torch.equal(together.scale[5 * level : 5 * level + 5], alone.scale)
        assert torch.equal(together.zero[5 * level : 5 * level + 5], alone.zero)
