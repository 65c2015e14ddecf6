"""Gradients of learnt rounding against autograd, and what it stores."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from evopress.compressors.base import LayerGroup
from evopress.compressors.gptq import GPTQ
from evopress.compressors.integer_levels import IntegerLevels
from evopress.compressors.rtn import RTN
from evopress.tuning.learnt_rounding import LearntRounding, rounding_of
from evopress.weights.integer import QuantizedWeight

WEIGHT = torch.randn(12, 64, generator=torch.Generator().manual_seed(0))


def start(bits: int, *, compressor: type[IntegerLevels] = RTN, symmetric: bool = False) -> LearntRounding:
    X = torch.randn(80, 64, generator=torch.Generator().manual_seed(3))
    group = LayerGroup(("layer",), (WEIGHT,), X.t() @ X)
    ((packed,),) = compressor(bits=[bits], group_size=16, symmetric=symmetric).compress(group).levels
    assert isinstance(packed, QuantizedWeight)
    return rounding_of(WEIGHT, packed)


def random_steps(rounding: LearntRounding, count: int) -> LearntRounding:
    generator = torch.Generator().manual_seed(1)
    for step in range(1, count + 1):
        gradient = torch.randn(12, 64, generator=generator)
        rounding = rounding.moved(gradient, step=step, rate=0.2, range_rate=0.1)
    return rounding


def straight_through(values: Tensor) -> Tensor:
    return values + (values.round() - values).detach()


def by_definition(rounding: LearntRounding, offset: Tensor, low_factor: Tensor, high_factor: Tensor) -> Tensor:
    """The dense weight as the formulas have it, for autograd."""
    low, high, max_code = low_factor * rounding.low, high_factor * rounding.high, rounding.max_code
    exact = (high - low) / max_code
    scale = exact + (exact.half().float() - exact).detach()
    zero = torch.full_like(scale, (max_code + 1) / 2)
    if not rounding.packed.symmetric:
        zero = straight_through(-low / scale)
    codes = straight_through(rounding.weight / scale[..., None] + offset) + zero[..., None]
    return (scale[..., None] * (codes.clamp(0, max_code) - zero[..., None])).flatten(1)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gradients_are_those_of_autograd(bits, symmetric):
    rounding = random_steps(start(bits, symmetric=symmetric), 3)
    gradient = torch.randn(12, 64, generator=torch.Generator().manual_seed(2))
    leaves = [t.clone().requires_grad_() for t in (rounding.offset, rounding.low_factor, rounding.high_factor)]
    dense = by_definition(rounding, *leaves)
    torch.testing.assert_close(rounding.rounded().dense(), dense.detach())
    expected = torch.autograd.grad(dense, leaves, gradient)
    for found, wanted in zip(rounding.gradients(gradient), expected, strict=True):
        assert wanted.abs().max() > 0
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("compressor", [RTN, GPTQ])
@pytest.mark.parametrize("bits", [2, 3, 8])
def test_it_starts_with_the_codes_and_the_grid_of_another_method(bits, compressor, symmetric):
    rounding = start(bits, compressor=compressor, symmetric=symmetric)
    nearest = replace(rounding, offset=torch.zeros_like(rounding.offset))
    assert (rounding.offset == 0).all() == (compressor is RTN)
    assert torch.equal(nearest.pack().codes(), rounding.packed.codes()) == (compressor is RTN)
    packed = rounding.pack()
    assert {n: t.tolist() for n, t in packed.tensors().items()} == {
        n: t.tolist() for n, t in rounding.packed.tensors().items()
    }


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 8])
def test_what_is_stored_decodes_to_what_was_learnt(bits, symmetric):
    rounding = random_steps(start(bits, symmetric=symmetric), 20)
    packed = rounding.pack()
    torch.testing.assert_close(packed.dense(), rounding.rounded().dense(), rtol=0, atol=0)
    assert packed.spec() == rounding.packed.spec() and packed.size_bytes == rounding.packed.size_bytes
    assert {n: (t.shape, t.dtype) for n, t in packed.tensors().items()} == {
        n: (t.shape, t.dtype) for n, t in rounding.packed.tensors().items()
    }
    assert not torch.equal(packed.codes(), rounding.packed.codes())


def test_numbers_stay_within_their_limits():
    rounding = start(3)
    for step in range(1, 11):
        rounding = rounding.moved(torch.ones(12, 64), step=step, rate=0.2, range_rate=0.3)
    for factor in (rounding.low_factor, rounding.high_factor):
        assert factor.min() >= 0.4 and factor.max() <= 1.4
    codes = rounding.pack().codes()
    assert codes.max() <= 7 and torch.isfinite(rounding.pack().dense()).all()


def test_a_step_lowers_a_linear_loss():
    rounding, direction = start(3), torch.randn(12, 64, generator=torch.Generator().manual_seed(4))
    losses = []
    for step in range(1, 7):
        losses.append(float((rounding.rounded().dense() * direction).sum()))
        rounding = rounding.moved(direction, step=step, rate=0.05, range_rate=0)
    assert all(after < before for before, after in pairwise(losses))
