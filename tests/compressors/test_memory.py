"""Solving holds few matrices of the size of the Hessian at once. With 28 672 inputs, each takes 3.3 GB."""

import pytest
import torch
from torch import Tensor

from evopress.compressors.base import Compressor, LayerGroup
from evopress.compressors.float import Float
from evopress.compressors.gguf import GGUF
from evopress.compressors.gptq import GPTQ
from evopress.compressors.hessian import RunningHessian, towards_identity
from evopress.compressors.inverse_factor import column_order, factor_inverse
from evopress.compressors.sparsegpt import SparseGPT
from tests.tensor_memory import peak_bytes

COLS = 768


def hessian(cols: int = COLS) -> Tensor:
    generator = torch.Generator().manual_seed(cols)
    X = torch.randn(2 * cols, cols, generator=generator) * (0.1 + torch.rand(cols, generator=generator))
    X[:, 1::7] = 0
    return X.t() @ X / len(X)


def in_matrices(num_bytes: int) -> float:
    """Relative to a float32 matrix of the size of the Hessian."""
    return num_bytes / (4 * COLS**2)


def test_the_counter_sees_what_is_alive_at_once():
    A = hessian()
    assert in_matrices(peak_bytes(lambda: A.t()[:10])[1]) == 0
    assert in_matrices(peak_bytes(lambda: A + 1)[1]) == 1
    assert in_matrices(peak_bytes(lambda: (A + 1) + 1)[1]) == 2
    assert in_matrices(peak_bytes(lambda: ((A + 1) + 1) + 1)[1]) == 2  # the first is freed before the third is made
    assert in_matrices(peak_bytes(lambda: (A + 1).add_(1).view(-1))[1]) == 1


@pytest.mark.parametrize("by_power", [False, True])
def test_a_factor_is_computed_in_one_matrix_and_half_a_matrix(by_power):
    H = hessian()
    before, order = H.clone(), column_order(H, by_power=by_power)
    _, peak = peak_bytes(lambda: factor_inverse(H, damp=0.01, order=order))
    assert in_matrices(peak) < 1.6
    assert torch.equal(H, before)


@pytest.mark.parametrize("cols", [1, 5, 256, 257, 600])
def test_the_factor_in_an_order_is_the_factor_of_the_permuted_hessian(cols):
    H = hessian(cols)
    order = column_order(H, by_power=True)
    permuted, ordered = factor_inverse(H[order][:, order], damp=0.01), factor_inverse(H, damp=0.01, order=order)
    assert torch.equal(permuted.U, ordered.U) and torch.equal(permuted.dead, ordered.dead)
    assert (permuted.absolute_damping, permuted.notes) == (ordered.absolute_damping, ordered.notes)


@pytest.mark.parametrize(
    ("compressor", "most"),
    [
        (GPTQ(bits=[4, 3], group_size=32), 2.3),
        (GPTQ(bits=[4, 3], group_size=32, refit_scales=False), 1.6),
        (SparseGPT(base=0.5, num_levels=1, step=100), 1.6),
        (GGUF(types=["Q8_0"]), 1.6),
        (Float(levels=["nvfp4"]), 1.6),
    ],
    ids=["gptq", "gptq without refit", "sparsegpt", "gguf", "float"],
)
def test_a_solve_holds_the_factor_and_at_most_one_matrix_more(compressor: Compressor, most: float):
    """In addition to the Hessian itself. The layer has few rows here, so that its weights do not count."""
    group = LayerGroup(("layer",), (torch.randn(2, COLS),), hessian())
    assert in_matrices(peak_bytes(lambda: compressor.compress(group))[1]) < most


def test_a_finished_hessian_takes_no_memory_of_its_own():
    running = RunningHessian(COLS)
    running.update(torch.randn(10, COLS, generator=torch.Generator().manual_seed(0)))
    expected = running.mean.triu() + running.mean.triu(1).t()
    H, peak = peak_bytes(running.result)
    assert torch.equal(H, expected) and in_matrices(peak) < 0.1
    mixed, peak = peak_bytes(lambda: towards_identity(H, 0.25))
    power = float(H.diagonal().double().mean())
    assert torch.equal(mixed, 0.25 * H + 0.75 * power * torch.eye(COLS)) and in_matrices(peak) == 1
