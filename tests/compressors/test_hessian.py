"""The running Hessian, however its inputs arrive, and the products that it is summed up with."""

import logging
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from evopress.compressors import outer_products
from evopress.compressors.hessian import RunningHessian
from evopress.compressors.outer_products import bfloat16_factors, bfloat16_factors_are_exact
from tests.groups import hessian_of, normal_inputs


def test_running_hessian_is_twice_the_mean_of_outer_products_however_it_is_split():
    X = normal_inputs()
    expected = (2 / len(X) * X.double().t() @ X.double()).float()
    running = RunningHessian(X.shape[1])
    for part in X.split([1, 70, 0, 129]):
        running.update(part)
    assert running.num_tokens == len(X)
    torch.testing.assert_close(running.result(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.counts("odd numbers")
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_inputs_that_are_not_finite_are_noticed(bad):
    X, running = normal_inputs(), RunningHessian(normal_inputs().shape[1])
    running.update(X)
    assert bool(running.is_finite())
    X[3, 4] = bad
    running.update(X)
    assert not bool(running.is_finite())


@pytest.mark.parametrize("cols", [24, 500])
def test_the_hessian_of_bfloat16_inputs_is_as_exact_as_in_float32(cols):
    X = normal_inputs(tokens=1000, cols=cols).bfloat16()
    exact = 2 / len(X) * X.double().t() @ X.double()
    errors = [float((hessian_of(inputs).double() - exact).abs().max()) for inputs in (X, X.float())]
    assert errors[0] <= 1.5 * errors[1]
    assert torch.equal(hessian_of(X), hessian_of(X).t())


def test_the_precision_of_products_is_restored_afterwards():
    backends = torch.backends.mkldnn.matmul, torch.backends.cuda.matmul
    before = [backend.fp32_precision for backend in backends]
    with bfloat16_factors():
        assert [backend.fp32_precision for backend in backends] == ["bf16", "tf32"]
    assert [backend.fp32_precision for backend in backends] == before


class ScaledProducts(TorchDispatchMode):
    """A processor whose products are too large by a factor; counts them."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket is torch.ops.aten.addmm_:
            self.count += 1
            result.mul_(self.factor)
        return result


@pytest.fixture
def fast_products(monkeypatch):
    """A function that makes the products inside `bfloat16_factors` wrong by a factor, as on some processors."""

    def replace(factor: float) -> ScaledProducts:
        mode = ScaledProducts(factor)

        @contextmanager
        def scaled():
            with mode:
                yield

        monkeypatch.setattr(outer_products, "bfloat16_factors", scaled)
        return mode

    bfloat16_factors_are_exact.cache_clear()
    yield replace
    bfloat16_factors_are_exact.cache_clear()


def float32_hessian(X: Tensor) -> Tensor:
    return hessian_of(X.float())


def test_less_exact_products_are_measured_once_and_never_used(fast_products, caplog):
    caplog.set_level(logging.INFO)
    inexact, X = fast_products(1 + 2**-16), normal_inputs(tokens=100, cols=40).bfloat16()
    assert torch.equal(hessian_of(X), float32_hessian(X))
    measured = inexact.count
    assert measured > 0
    assert torch.equal(hessian_of(X[:50]), float32_hessian(X[:50]))
    assert inexact.count == measured
    assert [record.message for record in caplog.records if "float32 factors are used" in record.message]
    assert len(caplog.records) == 1


def test_products_that_are_as_exact_are_used(fast_products, caplog):
    caplog.set_level(logging.INFO)
    exact, X = fast_products(1.0), normal_inputs(tokens=100, cols=40).bfloat16()
    assert torch.equal(hessian_of(X), float32_hessian(X))
    measured = exact.count
    hessian_of(X)
    assert exact.count > measured
    assert "; bfloat16 factors are used" in caplog.records[0].message


def test_inputs_of_other_types_are_neither_measured_nor_rounded(fast_products):
    fast = fast_products(2.0)
    hessian_of(normal_inputs(tokens=100, cols=40))
    hessian_of(normal_inputs(tokens=100, cols=40).half())
    assert fast.count == 0


def test_the_measurement_gives_the_same_errors_again(caplog):
    caplog.set_level(logging.INFO)
    for _ in range(3):
        bfloat16_factors_are_exact.cache_clear()
        bfloat16_factors_are_exact("cpu")
    ratios = [record.args[1] for record in caplog.records]
    assert len(ratios) == 3 and len(set(ratios)) == 1


def test_fast_products_are_not_used_on_other_devices():
    assert not bfloat16_factors_are_exact("meta")
