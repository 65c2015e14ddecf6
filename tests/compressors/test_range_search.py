import pytest
import torch
from torch import Tensor

from evopress.compressors import range_search
from evopress.compressors.range_search import search_grid
from evopress.weights.grids import Grid, fit_grid, max_codes

BITS = (6, 5, 4, 3, 2)


def made(groups: int = 3, size: int = 32, rows: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    """Weights with a few large ones (groups, size, lanes), powers of their inputs, and the largest codes."""
    generator = torch.Generator().manual_seed(0)
    rows_of_weights = torch.randn(groups, size, rows, generator=generator) ** 3
    power = torch.rand(groups, size, generator=generator) ** 4
    return rows_of_weights.repeat(1, 1, len(BITS)), power, max_codes(BITS, rows=rows, device=power.device)


def errors(W: Tensor, grid: Grid, *, power: Tensor) -> Tensor:
    """Σ p·(w − nearest point)² of every group and lane."""
    grid = Grid(grid.scale.unsqueeze(-2), grid.zero.unsqueeze(-2), grid.max_code)
    return ((grid.decode(grid.encode(W)) - W).double().square() * power.unsqueeze(-1)).sum(-2)


@pytest.mark.parametrize("symmetric", [False, True])
def test_no_range_has_a_larger_error_than_that_of_the_smallest_and_largest_weight(symmetric):
    W, power, max_code = made()
    settings = {"symmetric": symmetric, "scale_dtype": torch.float16}
    searched = errors(W, search_grid(W, max_code, power=power, **settings), power=power)
    plain = errors(W, fit_grid(W, max_code, **settings), power=power)
    assert bool((searched <= plain * 1.001).all())
    assert float(searched[..., -7:].sum()) < 0.6 * float(plain[..., -7:].sum())  # at 2 bits


def test_few_ranges_with_solved_scales_are_as_good_as_many_without():
    """Compared with the nearest codes on the grids of all pairs of 13 × 13 shrunk ends."""
    W, power, max_code = made()
    searched = errors(W, search_grid(W, max_code, power=power, symmetric=False, scale_dtype=torch.float16), power=power)
    low, high = W.amin(-2).clamp(max=0), W.amax(-2).clamp(min=0)
    shrunk = torch.linspace(1, 0.4, 13)
    least = torch.full_like(searched, float("inf"))
    for a in shrunk:
        for b in shrunk:
            scale = (high * b - low * a) / max_code
            grid = Grid(scale, (-low * a / scale).round(), max_code)
            least = torch.minimum(least, errors(W, grid, power=power))
    assert float((searched.sum((0, 1)) / least.sum((0, 1))).max()) < 1.15
    assert float(searched.sum()) < 1.02 * float(least.sum())


def test_the_scale_is_the_best_one_for_its_codes():
    W, power, max_code = made()
    grid = search_grid(W, max_code, power=power, symmetric=False, scale_dtype=torch.float32)
    codes = Grid(grid.scale.unsqueeze(-2), grid.zero.unsqueeze(-2), max_code).encode(W) - grid.zero.unsqueeze(-2)
    weighted = power.unsqueeze(-1)
    best = (weighted * W * codes).sum(-2) / (weighted * codes.square()).sum(-2)

    def error(scale: Tensor) -> float:
        return float(((codes * scale.unsqueeze(-2) - W).double().square() * weighted).sum())

    assert error(best) <= error(grid.scale) <= 1.005 * error(best)


def test_a_column_without_input_has_no_say_and_without_any_input_all_have_the_same():
    W, power, max_code = made()
    power[:, :4] = 0
    settings = {"symmetric": False, "scale_dtype": torch.float16}
    grid = search_grid(W, max_code, power=power, **settings)
    assert float((errors(W, grid, power=power) - errors(W[:, 4:], grid, power=power[:, 4:])).abs().max()) < 1e-6
    unweighted = search_grid(W, max_code, power=torch.zeros_like(power), **settings)
    assert torch.equal(unweighted.scale, search_grid(W, max_code, power=torch.ones_like(power), **settings).scale)


def test_zeros_stay_zeros_and_extreme_weights_stay_finite():
    _, power, max_code = made()
    for value in (0.0, 1e-30, 1e30):
        grid = search_grid(
            torch.full((3, 32, 35), value), max_code, power=power, symmetric=False, scale_dtype=torch.float16
        )
        assert bool((grid.scale > 0).all()) and bool(grid.scale.isfinite().all())
        assert bool(((grid.zero >= 0) & (grid.zero <= max_code)).all())


def test_the_size_of_a_tile_changes_nothing(monkeypatch):
    W, power, max_code = made()
    settings = {"power": power, "symmetric": False, "scale_dtype": torch.float16}
    whole = search_grid(W, max_code, **settings)
    monkeypatch.setattr(range_search, "TILE", 32 * 8)
    tiled = search_grid(W, max_code, **settings)
    torch.testing.assert_close(whole.scale, tiled.scale, rtol=1e-3, atol=0)
