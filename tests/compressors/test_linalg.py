import pytest
import torch

from evopress.compressors import linalg
from evopress.compressors.linalg import RunningHessian, bfloat16_factors, energy, inverse_factor, relative_error


def inputs(tokens=200, cols=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, cols, generator=generator) @ torch.randn(cols, cols, generator=generator)


def hessian(X):
    running = RunningHessian(X.shape[1])
    running.update(X)
    return running.result()


def test_running_hessian_is_twice_the_mean_of_outer_products_however_it_is_split():
    X = inputs()
    expected = (2 / len(X) * X.double().t() @ X.double()).float()
    running = RunningHessian(X.shape[1])
    for part in X.split([1, 70, 0, 129]):
        running.update(part)
    assert running.num_tokens == len(X)
    torch.testing.assert_close(running.result(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("cols", [24, 500])
def test_the_hessian_of_bfloat16_inputs_is_as_exact_as_in_float32(cols):
    X = inputs(tokens=1000, cols=cols).bfloat16()
    exact = 2 / len(X) * X.double().t() @ X.double()
    errors = [float((hessian(each).double() - exact).abs().max()) for each in (X, X.float())]
    assert errors[0] <= 1.5 * errors[1]
    assert torch.equal(hessian(X), hessian(X).t())


def test_products_are_rounded_again_as_they_were_before():
    backends = torch.backends.mkldnn.matmul, torch.backends.cuda.matmul
    before = [backend.fp32_precision for backend in backends]
    with bfloat16_factors():
        assert [backend.fp32_precision for backend in backends] == ["bf16", "tf32"]
    assert [backend.fp32_precision for backend in backends] == before


@pytest.mark.counts("numerics")
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_inputs_that_are_not_finite_are_noticed(bad):
    X, running = inputs(), RunningHessian(inputs().shape[1])
    running.update(X)
    assert bool(running.is_finite())
    X[3, 4] = bad
    running.update(X)
    assert not bool(running.is_finite())
    with pytest.raises(ValueError, match="not finite"):
        inverse_factor(torch.full((3, 3), bad), damp=0.01)


@pytest.mark.parametrize("columns_at_once", [256, 7])
def test_factor_is_the_upper_cholesky_factor_of_the_damped_inverse(columns_at_once, monkeypatch):
    monkeypatch.setattr(linalg, "RECURSIVE", columns_at_once)
    X = inputs().double()
    H = 2 / len(X) * (X.t() @ X)
    H = (H + H.t()) / 2
    factor = inverse_factor(H, damp=0.01)
    assert factor.U is not None and factor.notes == () and not factor.dead.any()
    assert factor.damp == pytest.approx(0.01 * float(H.diagonal().mean()))
    assert torch.equal(factor.U, factor.U.triu())
    damped = H + factor.damp * torch.eye(len(H), dtype=H.dtype)
    torch.testing.assert_close(factor.U.t() @ factor.U @ damped, torch.eye(len(H), dtype=H.dtype), rtol=0, atol=1e-8)


@pytest.mark.counts("numerics")
def test_dead_columns_are_found_told_and_independent_of_the_others():
    X = inputs()
    X[:, [2, 7]] = 0
    factor = inverse_factor(hessian(X), damp=0.01)
    assert factor.dead.nonzero().flatten().tolist() == [2, 7]
    assert "2 of 24" in factor.notes[0]
    others = [column for column in range(24) if column not in (2, 7)]
    assert not factor.U[2, others].any() and not factor.U[others, 2].any()


@pytest.mark.counts("numerics")
def test_fewer_tokens_than_columns_can_be_factored():
    assert inverse_factor(hessian(inputs(tokens=5)), damp=0.01).U is not None


@pytest.mark.counts("numerics")
def test_a_hopeless_hessian_is_given_up_with_every_step_told():
    factor = inverse_factor(torch.eye(4) - 100 * torch.ones(4, 4), damp=0.01)
    assert factor.U is None and len(factor.notes) == 5
    assert "float64" in factor.notes[1] and "damping 10" in factor.notes[-1]


@pytest.mark.counts("numerics")
def test_higher_damping_saves_a_slightly_indefinite_hessian():
    H = torch.eye(4)
    H[0, 1] = H[1, 0] = 1.05
    factor = inverse_factor(H, damp=0.01)
    assert factor.U is not None and factor.damp == pytest.approx(0.1) and len(factor.notes) == 2


@pytest.mark.counts("numerics")
def test_an_input_that_was_never_active_has_no_factor():
    factor = inverse_factor(torch.zeros(4, 4), damp=0.01)
    assert factor.U is None and factor.dead.all() and factor.notes


def test_energy_is_the_power_of_the_output():
    X, W = inputs(), torch.randn(6, 24, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(energy(W, hessian(X)), 2 / len(X) * (X @ W.t()).square().sum(0), rtol=1e-4, atol=1e-3)
    assert relative_error(W, W, None) == 1
    assert relative_error(W, torch.zeros_like(W), None) == 0
