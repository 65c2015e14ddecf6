import pytest
import torch
from torch import Tensor

from evopress.compressors import scale_refit
from evopress.compressors.gptq import GPTQ
from evopress.compressors.scale_refit import refit_scales
from evopress.weights.integer import QuantizedWeight
from tests.groups import group

GROUPS, SIZE, ROWS, LEVELS = 4, 16, 6, 3


def made() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows, codes less zero points (cols, lanes), scales (groups, lanes) and a Hessian, all float64."""
    generator = torch.Generator().manual_seed(0)
    cols = GROUPS * SIZE
    rows = torch.randn(ROWS, cols, generator=generator, dtype=torch.float64)
    scale = torch.rand(GROUPS, LEVELS * ROWS, generator=generator, dtype=torch.float64) + 0.3
    lanes = rows.t().repeat(1, LEVELS)
    steps = (lanes.unflatten(0, (GROUPS, SIZE)) / scale.unsqueeze(1)).round().flatten(0, 1)
    mixed = torch.randn(200, cols, generator=generator, dtype=torch.float64)
    return rows, steps, scale, mixed.t() @ mixed / 200


def errors_of(rows: Tensor, steps: Tensor, *, scale: Tensor, H: Tensor) -> Tensor:
    change = steps * scale.repeat_interleave(SIZE, 0) - rows.t().repeat(1, LEVELS)
    return ((H @ change) * change).sum(0)


def test_the_scales_are_the_least_squares_solution():
    """Against a solver of dense least squares, row by row, with a root of H."""
    rows, steps, scale, H = made()
    refitted, errors = refit_scales(rows, steps, scale=scale, H=H, scale_dtype=torch.float64)
    root = torch.linalg.cholesky(H).t()
    for lane in range(LEVELS * ROWS):
        blocks = torch.block_diag(*steps[:, lane].view(GROUPS, SIZE)).t()  # (cols, groups)
        best = torch.linalg.lstsq(root @ blocks, (root @ rows[lane % ROWS])[:, None]).solution[:, 0]
        torch.testing.assert_close(refitted[:, lane], best, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(errors, errors_of(rows, steps, scale=refitted, H=H))


def test_no_error_rises_and_scales_are_stored_numbers():
    rows, steps, scale, H = made()
    scale = scale.half().double()
    refitted, errors = refit_scales(rows, steps, scale=scale, H=H, scale_dtype=torch.float16)
    assert torch.equal(refitted.half().double(), refitted)
    before = errors_of(rows, steps, scale=scale, H=H)
    assert bool((errors <= before).all()) and bool((errors < 0.999 * before).any())


def test_a_group_of_zeros_keeps_its_scale_and_a_row_whose_scale_would_turn_negative_keeps_all():
    rows, steps, scale, H = made()
    steps[:SIZE, 0] = 0
    steps[:, 1] *= -1
    refitted, errors = refit_scales(rows, steps, scale=scale, H=H, scale_dtype=torch.float64)
    assert float(refitted[0, 0]) == pytest.approx(float(scale[0, 0]))
    assert torch.equal(refitted[:, 1], scale[:, 1])
    torch.testing.assert_close(errors, errors_of(rows, steps, scale=refitted, H=H))


def test_the_size_of_a_tile_changes_nothing(monkeypatch):
    rows, steps, scale, H = made()
    settings = {"scale": scale, "H": H, "scale_dtype": torch.float64}
    whole = refit_scales(rows, steps, **settings)
    monkeypatch.setattr(scale_refit, "TILE", len(steps) * 4)
    torch.testing.assert_close(refit_scales(rows, steps, **settings), whole)


@pytest.mark.parametrize("symmetric", [False, True])
def test_refitting_keeps_the_codes_and_lowers_the_error(symmetric):
    layers = group((24, 8), 96)
    settings = {"group_size": 32, "symmetric": symmetric}
    plain, refitted = (GPTQ(**settings, refit_scales=refit).compress(layers) for refit in (False, True))
    for before, after, errors, errors_before in zip(
        plain.levels, refitted.levels, refitted.errors, plain.errors, strict=True
    ):
        assert (
            all(new <= old for new, old in zip(errors, errors_before, strict=True)) and errors[-1] < errors_before[-1]
        )
        for old, new in zip(before, after, strict=True):
            assert isinstance(old, QuantizedWeight) and torch.equal(old.codes(), new.codes())
