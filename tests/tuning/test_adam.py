"""The optimiser, its learning rate and the order of the windows."""

import torch

from evopress.tuning.adam import EPSILON, Moments, adam_update, adam_updates, rate_factor, windows_of_step


def test_updates_are_those_of_torch():
    parameter = torch.nn.Parameter(torch.linspace(-1, 1, 7, dtype=torch.float64))
    value, moments = parameter.detach().clone(), Moments(torch.zeros_like(parameter), torch.zeros_like(parameter))
    optimizer = torch.optim.Adam([parameter], lr=0.03, betas=(0.9, 0.95), eps=EPSILON)
    for step in range(1, 6):
        parameter.grad = gradient = (parameter.detach() - step).pow(3)
        optimizer.step()
        update, moments = adam_update(gradient, moments, step=step, learning_rate=0.03)
        value = value + update
        torch.testing.assert_close(value, parameter.detach(), rtol=1e-12, atol=0)


def test_joined_parameters_get_the_updates_that_each_gets_alone():
    draw = torch.Generator().manual_seed(0)
    shapes = {"a": (3, 5), "b": (7,), "c": (1, 1)}
    gradients = {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    moments = {name: Moments(torch.randn_like(g), torch.rand_like(g)) for name, g in gradients.items()}
    updates, new_moments = adam_updates(gradients, moments, step=4, learning_rate=0.03)
    assert list(updates) == list(new_moments) == list(shapes)
    for name, gradient in gradients.items():
        update, new = adam_update(gradient, moments[name], step=4, learning_rate=0.03)
        assert torch.equal(updates[name], update)
        assert all(map(torch.equal, new_moments[name], new))


def test_the_rate_rises_to_one_and_falls_towards_zero():
    factors = [rate_factor(step, steps=100, warmup=0.1) for step in range(1, 101)]
    assert factors[:10] == [step / 10 for step in range(1, 11)]
    assert sorted(factors[9:], reverse=True) == factors[9:]
    assert 0 < factors[-1] < 0.001
    assert rate_factor(1, steps=1, warmup=0) > 0


def test_every_window_is_used_once_before_any_is_used_again():
    order = [w for step in range(1, 11) for w in windows_of_step(step, per_step=3, num_windows=10, seed=0)]
    assert all(sorted(order[start : start + 10]) == list(range(10)) for start in (0, 10, 20))
    assert order[:10] != order[10:20]
    assert order[:3] != windows_of_step(1, per_step=3, num_windows=10, seed=1)
