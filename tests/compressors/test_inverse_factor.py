"""The factor of the inverse Hessian, and what is done where there is none."""

import pytest
import torch

from evopress.compressors import inverse_factor
from evopress.compressors.inverse_factor import factor_inverse
from tests.groups import hessian_of, normal_inputs


@pytest.mark.parametrize("cols_at_once", [256, 7])
def test_factor_is_the_upper_cholesky_factor_of_the_damped_inverse(cols_at_once, monkeypatch):
    monkeypatch.setattr(inverse_factor, "MAX_COLS_AT_ONCE", cols_at_once)
    X = normal_inputs().double()
    H = 2 / len(X) * (X.t() @ X)
    H = (H + H.t()) / 2
    factor = factor_inverse(H, damp=0.01)
    assert factor.U is not None and factor.notes == () and not factor.dead.any()
    assert factor.absolute_damping == pytest.approx(0.01 * float(H.diagonal().mean()))
    assert torch.equal(factor.U, factor.U.triu())
    damped = H + factor.absolute_damping * torch.eye(len(H), dtype=H.dtype)
    torch.testing.assert_close(factor.U.t() @ factor.U @ damped, torch.eye(len(H), dtype=H.dtype), rtol=0, atol=1e-8)


@pytest.mark.counts("odd numbers")
def test_dead_columns_are_found_noted_and_independent_of_the_others():
    X = normal_inputs()
    X[:, [2, 7]] = 0
    factor = factor_inverse(hessian_of(X), damp=0.01)
    assert factor.dead.nonzero().flatten().tolist() == [2, 7]
    assert "2 of 24" in factor.notes[0]
    others = [column for column in range(24) if column not in (2, 7)]
    assert not factor.U[2, others].any() and not factor.U[others, 2].any()


@pytest.mark.counts("odd numbers")
def test_fewer_tokens_than_columns_can_be_factored():
    assert factor_inverse(hessian_of(normal_inputs(tokens=5)), damp=0.01).U is not None


@pytest.mark.counts("odd numbers")
def test_a_hessian_that_cannot_be_factored_gives_none_and_a_note_on_every_attempt():
    factor = factor_inverse(torch.eye(4) - 100 * torch.ones(4, 4), damp=0.01)
    assert factor.U is None and len(factor.notes) == 5
    assert "float64" in factor.notes[1] and "damping 10" in factor.notes[-1]


@pytest.mark.counts("odd numbers")
def test_higher_damping_saves_a_slightly_indefinite_hessian():
    H = torch.eye(4)
    H[0, 1] = H[1, 0] = 1.05
    factor = factor_inverse(H, damp=0.01)
    assert factor.U is not None and factor.absolute_damping == pytest.approx(0.1) and len(factor.notes) == 2


@pytest.mark.counts("odd numbers")
def test_an_input_that_was_never_active_has_no_factor():
    factor = factor_inverse(torch.zeros(4, 4), damp=0.01)
    assert factor.U is None and factor.dead.all() and factor.notes


@pytest.mark.counts("odd numbers")
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_hessian_that_is_not_finite_is_refused(bad):
    with pytest.raises(ValueError, match="not finite"):
        factor_inverse(torch.full((3, 3), bad), damp=0.01)
