import pytest
import torch
from torch import Tensor

from evopress.compressors.block_search import _ranges, search_blocks
from evopress.weights.block_grids import BLOCK, TYPES, BlockGrid, fit_blocks

NAMES = sorted(TYPES)


def made(rows: int = 9) -> tuple[Tensor, Tensor]:
    """Weights of one block with a few large ones, (32, rows), and the powers of the inputs."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(BLOCK, rows, generator=generator) ** 3, torch.rand(BLOCK, generator=generator) ** 4


def errors(W: Tensor, grid: BlockGrid, *, power: Tensor) -> Tensor:
    """Σ p·(w − nearest point)² of every lane."""
    return ((grid.decode(grid.encode(W)) - W).double().square() * power.unsqueeze(1)).sum(0)


@pytest.mark.parametrize("name", NAMES)
def test_no_block_has_a_larger_error_than_with_the_grid_of_the_reference(name):
    W, power = made()
    searched = errors(W, search_blocks(W, power, types=[TYPES[name]]), power=power)
    reference = errors(W, fit_blocks(W, [TYPES[name]]), power=power)
    assert bool((searched <= 1.001 * reference).all())
    assert float(searched.sum()) < (0.9 if TYPES[name].bits < 8 else 1.0) * float(reference.sum())


@pytest.mark.parametrize("name", NAMES)
def test_the_grid_is_as_good_as_the_best_least_squares_fit_to_the_codes_of_any_range(name):
    """Against a solver of dense least squares, row by row and range by range, up to the rounding to float16."""
    W, power = made()
    kind, root = TYPES[name], power.sqrt().double()
    searched = errors(W, search_blocks(W, power, types=[kind]), power=power)
    for row in range(W.shape[1]):
        w, least = W[:, row : row + 1], float("inf")
        for scale, offset in _ranges(w, kind):
            codes = ((w - offset) / scale).round().clamp(kind.low, kind.high)[:, 0].double()
            terms = [codes, torch.ones(BLOCK).double()] if kind.has_offset else [codes]
            A, b = root[:, None] * torch.stack(terms, 1), root[:, None] * w
            fit = torch.linalg.lstsq(A, b, driver="gelsd").solution
            least = min(least, float((A @ fit - b).square().sum()))
        assert float(searched[row]) <= 1.01 * least


@pytest.mark.parametrize("name", NAMES)
def test_trying_hundreds_of_ranges_gains_little_more(name):
    W, kind = torch.randn(BLOCK, 64, generator=torch.Generator().manual_seed(0)), TYPES[name]
    least = torch.full((64,), torch.inf, dtype=torch.float64)
    low, high, ends = W.amin(0), W.amax(0), torch.linspace(-1, 3, 21).tolist()
    furthest = W.gather(0, W.abs().argmax(0, keepdim=True))[0]
    if kind.has_offset:
        steps = [((high - low) / (kind.high + below + above), below) for below in ends for above in ends]
        ranges = [(step, low + below * step) for step, below in steps]
    else:
        sizes = [size * (1 + beyond / 20) for size in (kind.low, kind.high) for beyond in range(-4, 40)]
        ranges = [(furthest / size, torch.zeros(64)) for size in sizes]
    for step, offset in ranges:
        q = ((W - offset) / step).round().clamp(kind.low, kind.high).double()
        centre = q.mean(0) * kind.has_offset
        slope = ((q - centre) * W).sum(0) / (q - centre).square().sum(0)
        fitted = slope * (q - centre) + W.double().mean(0) * kind.has_offset
        least = torch.minimum(least, (fitted - W).square().sum(0))
    searched = errors(W, search_blocks(W, torch.ones(BLOCK), types=[kind]), power=torch.ones(BLOCK))
    assert float(searched.sum()) < 1.06 * float(least.sum())


def test_types_searched_together_equal_each_alone():
    W, power = made()
    together = search_blocks(W.repeat(1, len(NAMES)), power, types=[TYPES[name] for name in NAMES])
    for index, name in enumerate(NAMES):
        alone = search_blocks(W, power, types=[TYPES[name]])
        lanes = slice(index * W.shape[1], (index + 1) * W.shape[1])
        for part in ("scale", "offset", "low", "high"):
            torch.testing.assert_close(getattr(together, part)[lanes], getattr(alone, part), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_zeros_and_extreme_weights_have_finite_grids(name):
    for value in (0.0, 1e-30, 1e30, 3.0):
        grid = search_blocks(torch.full((BLOCK, 2), value), torch.ones(BLOCK), types=[TYPES[name]])
        assert bool(grid.scale.isfinite().all()) and bool(grid.offset.isfinite().all())
        if value in (0.0, 3.0):
            W = torch.full((BLOCK, 2), value)
            assert float((grid.decode(grid.encode(W)) - W).abs().max()) <= value / 127
