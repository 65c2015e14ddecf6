"""The two sub-blocks of a decoder block, and modules that compute nothing in their place."""

import torch
from torch import Tensor
from torch.nn import Module

SUBBLOCKS = ("attention", "mlp")
"""In the order in which they run."""


def no_op(subblock: str) -> Module:
    """A module that replaces an attention or an MLP and adds nothing to the residual stream."""
    return NoOpAttention() if subblock == "attention" else NoOpMLP()


class NoOpAttention(Module):
    """Returns zeros, and no attention weights."""

    def forward(self, hidden_states: Tensor, **kwargs: object) -> tuple[Tensor, None]:
        return torch.zeros_like(hidden_states), None


class NoOpMLP(Module):
    """Returns a single zero, which the residual addition broadcasts.

    The shape cannot be that of the input: where the MLP is only its last layer (OPT), the input is wider.
    """

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states.new_zeros(())
