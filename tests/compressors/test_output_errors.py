import torch

from evopress.compressors.output_errors import energy, relative_error
from tests.groups import hessian_of, normal_inputs


def test_energy_is_the_power_of_the_output():
    X, W = normal_inputs(), torch.randn(6, 24, generator=torch.Generator().manual_seed(1))
    expected = 2 / len(X) * (X @ W.t()).square().sum(0)
    torch.testing.assert_close(energy(W, hessian_of(X)), expected, rtol=1e-4, atol=1e-3)


def test_the_error_of_no_weights_is_one_and_that_of_unchanged_weights_is_zero():
    W = torch.randn(6, 24, generator=torch.Generator().manual_seed(1))
    assert relative_error(W, W, H=None) == 1
    assert relative_error(W, torch.zeros_like(W), H=None) == 0
