"""Adam, its learning rate and the order of the windows, as pure functions of the step."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import cos, pi
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor

BETAS = (0.9, 0.95)

EPSILON = 1e-12
"""Much smaller than the gradient of a single scale, which is about 1e-8 in a model with billions of weights."""


class Moments(NamedTuple):
    """The running means of the gradient and of its square."""

    first: Tensor
    second: Tensor


def adam_update(gradient: Tensor, moments: Moments, *, step: int, learning_rate: float) -> tuple[Tensor, Moments]:
    """The update to add to a parameter at `step` = 1, 2, …, and the new moments.

    Source: Kingma and Ba, arXiv 1412.6980, Algorithm 1.
    """
    beta1, beta2 = BETAS
    first = beta1 * moments.first + (1 - beta1) * gradient
    second = beta2 * moments.second + (1 - beta2) * gradient.square()
    denominator = (second / (1 - beta2**step)).sqrt() + EPSILON
    return -learning_rate * (first / (1 - beta1**step)) / denominator, Moments(first, second)


def adam_updates(
    gradients: Mapping[str, Tensor], moments: Mapping[str, Moments], *, step: int, learning_rate: float
) -> tuple[dict[str, Tensor], dict[str, Moments]]:
    """`adam_update` of several parameters, by name.

    The tensors are joined, so a GPU starts a few kernels for all of them instead of a few for each.
    """
    shapes = [gradient.shape for gradient in gradients.values()]
    joined = Moments(*(_joined(kind) for kind in zip(*(moments[name] for name in gradients), strict=True)))
    update, new = adam_update(_joined(gradients.values()), joined, step=step, learning_rate=learning_rate)
    updates, firsts, seconds = (_parts(tensor, shapes) for tensor in (update, *new))
    new_moments = map(Moments, firsts, seconds)
    return dict(zip(gradients, updates, strict=True)), dict(zip(gradients, new_moments, strict=True))


def _joined(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def _parts(joined: Tensor, shapes: Sequence[torch.Size]) -> Iterator[Tensor]:
    """The tensors of these shapes that were joined, as views."""
    parts = joined.split([shape.numel() for shape in shapes])
    return (part.view(shape) for part, shape in zip(parts, shapes, strict=True))


def rate_factor(step: int, *, steps: int, warmup: float) -> float:
    """The factor of the learning rate at `step` = 1 … `steps`: a linear rise to 1, then a cosine.

    The cosine would reach 0 one step after the last, so that the last step still changes something.
    """
    rising = warmup * steps
    if step <= rising:
        return step / rising
    return (1 + cos(pi * (step - rising) / (steps - rising + 1))) / 2


def windows_of_step(step: int, *, per_step: int, num_windows: int, seed: int) -> list[int]:
    """The indices of the windows that `step` = 1, 2, … uses. Every pass over the windows has a new random order."""

    def window_at(position: int) -> int:
        epoch, place = divmod(position, num_windows)
        return Random(f"{seed} {epoch}").sample(range(num_windows), num_windows)[place]

    return [window_at((step - 1) * per_step + index) for index in range(per_step)]
