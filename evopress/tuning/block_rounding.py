"""Learns how the weights of one block are rounded, all layers together.

::

    start with the codes and the grids that the layers have
    for each step:
        loss ← ‖block(x) − y‖, summed over the tokens
        move every offset and factor by a step of Adam, whose rate falls linearly to 0
        at some steps: measure the loss on the held-out windows
    the rounding with the least of these losses, or that at the start

x are hidden states of the compressed model, and y those that the dense model has after the block. The norms are not
squared, unlike in the paper. A few tokens have very large states and errors, such as the first one, to which all others
attend. They would make up nearly all of a sum of squares, and little would be learnt from the other tokens. But they
must not be left out either: with squares relative to ‖y‖², learning two blocks of SmolLM2-135M broke the model (KL
0.57).

Source: arXiv 2309.05516, Algorithm 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from evopress.models.language_model import BlockKwargs, LanguageModel
from evopress.space.choices import BlockChoice
from evopress.tuning.adam import windows_of_step
from evopress.tuning.learnt_rounding import LearntRounding, rounding_of
from evopress.tuning.settings import Tuning
from evopress.weights.base import CompressedWeight
from evopress.weights.integer import QuantizedWeight

Weights = Mapping[str, CompressedWeight]
"""The weights of a block by local layer name."""


@dataclass(frozen=True)
class BlockTask:
    """A block whose rounding is learnt. `inputs` and `targets` are the states before and after it, (windows, time, …).

    The last `num_held_out` windows are held out. At most `windows_at_once` go through the block together.
    """

    lm: LanguageModel
    block: int
    choice: BlockChoice
    kwargs: BlockKwargs
    inputs: Float[Tensor, "windows time hidden"]
    targets: Float[Tensor, "windows time hidden"]
    num_held_out: int
    windows_at_once: int

    @property
    def num_training(self) -> int:
        return len(self.inputs) - self.num_held_out

    def run(self, windows: list[int], weights: Mapping[str, Tensor]) -> Float[Tensor, "windows time hidden"]:
        """The outputs of the block on some windows."""
        inputs = self.inputs[windows].to(self.lm.device)
        return self.lm.run_block(self.block, inputs, self.kwargs, weights=weights, dropped=self.choice.dropped)

    def loss(self, windows: list[int], weights: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        """The root of the mean squared error of each token's output, summed over the tokens."""
        target = self.targets[windows].to(self.lm.device).float()
        squared = (self.run(windows, weights).float() - target).square().mean(-1)
        return squared.clamp(min=torch.finfo(squared.dtype).tiny).sqrt().sum()

    def parts(self, windows: list[int]) -> list[list[int]]:
        """The windows that go through the block together."""
        return [windows[first : first + self.windows_at_once] for first in range(0, len(windows), self.windows_at_once)]

    @torch.no_grad()
    def held_out_loss(self, weights: Mapping[str, Tensor]) -> float:
        """The mean error of a held-out token."""
        held_out = list(range(self.num_training, len(self.inputs)))
        total = sum(float(self.loss(part, weights)) for part in self.parts(held_out))
        return total / (len(held_out) * self.inputs.shape[1])

    def gradients(self, windows: list[int], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The gradients of the loss at the dense weights, float32."""
        sums: dict[str, Tensor] = {}
        for part in self.parts(windows):
            leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
            with torch.enable_grad():
                loss = self.loss(part, leaves)
            gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
            for name, gradient in zip(leaves, gradients, strict=True):
                sums[name] = sums[name] + gradient.float() if name in sums else gradient.float()
        return sums


@dataclass(frozen=True)
class LearntBlock:
    """The weights of a block by local name, and the held-out loss of the weights before and of these."""

    weights: Weights
    loss_before: float
    loss_after: float


def learn_block(task: BlockTask, start: Weights, settings: Tuning) -> LearntBlock:
    """Learn the rounding of the layers that have integer codes in `start`; the others stay.

    The weights in `start` and those that are returned are in the memory of the CPU.
    """
    lm = task.lm
    on_device = {name: weight.to(lm.device) for name, weight in start.items()}
    fixed = {name: weight.dense(lm.dtype) for name, weight in on_device.items()}
    before = task.held_out_loss(fixed)
    best = LearntBlock(start, before, before)
    roundings = {
        name: rounding_of(lm.linear(task.block, name).weight.to(lm.device), packed)
        for name, packed in on_device.items()
        if isinstance(packed, QuantizedWeight)
    }
    check_steps = settings.resolve_check_steps
    for step in range(1, settings.resolve_steps + 1) if roundings else ():
        windows = windows_of_step(
            step, per_step=settings.resolve_windows, num_windows=task.num_training, seed=settings.seed
        )
        gradients = task.gradients(windows, fixed | _dense(roundings, lm.dtype))
        share = share_of_step(step, steps=settings.resolve_steps)
        rate, range_rate = share * settings.rounding_distance, share * settings.resolve_range_distance
        roundings = {
            name: rounding.moved(gradients[name], step=step, rate=rate, range_rate=range_rate)
            for name, rounding in roundings.items()
        }
        if step in check_steps:
            loss = task.held_out_loss(fixed | _dense(roundings, lm.dtype))
            if loss < best.loss_after:
                packed = {name: rounding.pack().to(torch.device("cpu")) for name, rounding in roundings.items()}
                best = LearntBlock({**start, **packed}, before, loss)
    return best


def share_of_step(step: int, *, steps: int) -> float:
    """The share of `step` = 1 … `steps` in all rates, which fall linearly and add up to 1."""
    return 2 * (steps + 1 - step) / (steps * (steps + 1))


def _dense(roundings: Mapping[str, LearntRounding], dtype: torch.dtype) -> dict[str, Tensor]:
    """The dense weights of all layers whose rounding is learnt."""
    return {name: rounding.rounded().dense().to(dtype) for name, rounding in roundings.items()}
