"""The two sub-blocks of a decoder block, and modules that compute nothing in their place."""

from inspect import signature

import torch
from torch import Tensor
from torch.nn import Linear, Module
from transformers import Cache

SUBBLOCKS = ("attention", "mlp")
"""In the order in which they run."""

PAIRS = ("Llama4TextMoe", "GptOssMLP")
"""Classes of MLPs that return their output and that of their router."""


def no_op(subblock: str, module: Module, *, layer_idx: int) -> Module:
    """A module that replaces `module`, the attention or MLP of block `layer_idx`, and adds nothing to the residual."""
    if subblock == "mlp":
        return NoOpLayer() if isinstance(module, Linear) else NoOpMLP(returns_pair=type(module).__name__ in PAIRS)
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
    """Returns zeros; if `returns_pair`, zeros and None in place of the outputs of a router."""

    def __init__(self, *, returns_pair: bool):
        super().__init__()
        self.returns_pair = returns_pair

    def forward(self, hidden_states: Tensor) -> Tensor | tuple[Tensor, None]:
        zeros = torch.zeros_like(hidden_states)
        return (zeros, None) if self.returns_pair else zeros


class NoOpLayer(Module):
    """Returns a single zero, which the residual addition broadcasts.

    This replaces an MLP that consists only of its last layer (OPT), whose input is wider than its output.
    """

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states.new_zeros(())
