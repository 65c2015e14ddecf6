"""The two sub-blocks of a decoder block, and modules that compute nothing in their place."""

from inspect import signature

import torch
from torch import Tensor
from torch.nn import Module
from transformers import Cache

SUBBLOCKS = ("attention", "mlp")
"""In the order in which they run."""


def no_op(subblock: str, module: Module, *, layer_idx: int) -> Module:
    """A module that replaces `module`, the attention or MLP of block `layer_idx`, and adds nothing to the residual."""
    if subblock == "mlp":
        return NoOpMLP()
    is_linear = "cache_params" in signature(module.forward).parameters
    return NoOpLinearAttention() if is_linear else NoOpAttention(layer_idx)


class NoOpAttention(Module):
    """Returns zeros, and no attention weights.

    It still tells the key-value cache of its layer how many tokens it has seen, with one zero per token. transformers
    derives positions and masks from the length of a single layer, often the first, and that one may be dropped.
    """

    def __init__(self, layer_idx: int):
        super().__init__()
        self.layer_idx = layer_idx

    def forward(self, hidden_states: Tensor, **kwargs: object) -> tuple[Tensor, None]:
        cache = kwargs.get("past_key_values")
        if isinstance(cache, Cache):
            placeholder = hidden_states.new_zeros(*hidden_states.shape[:1], 1, hidden_states.shape[1], 1)
            cache.update(placeholder, placeholder, self.layer_idx)
        return torch.zeros_like(hidden_states), None


class NoOpLinearAttention(Module):
    """Returns zeros. Unlike other attentions, a linear attention returns one tensor, and its cache has no length."""

    def forward(self, hidden_states: Tensor, **kwargs: object) -> Tensor:
        return torch.zeros_like(hidden_states)


class NoOpMLP(Module):
    """Returns a single zero, which the residual addition broadcasts.

    The shape cannot be that of the input: if the MLP consists only of its last layer (OPT), the input is wider.
    """

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states.new_zeros(())
