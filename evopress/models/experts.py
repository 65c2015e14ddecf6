"""Mixtures of experts with a linear layer for each matrix of each expert, so that experts are layers like all others.

transformers keeps the experts of a block as two parameters, `gate_up_proj` (experts, 2·inner, hidden) and `down_proj`
(experts, hidden, inner); checkpoints, and engines, name a matrix per expert. `unpack` gives the module in memory the
names of the checkpoint. Routers stay as they are.
"""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import Linear, Module, ModuleList, Parameter

NAMES: Mapping[str, tuple[str, str, str]] = {"mixtral": ("w1", "w3", "w2")}
"""What checkpoints call gate, up and down, by `config.model_type`; the others say it in words."""

USUAL_NAMES = ("gate_proj", "up_proj", "down_proj")


class Expert(Module):
    """down(act(gate x) · up x). `tokens` are the places of the tokens that were routed here last."""

    def __init__(self, layers: Mapping[str, Linear], act: Callable[[Tensor], Tensor]):
        super().__init__()
        self.names = tuple(layers)
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.act = act
        self.tokens: Tensor | None = None

    def forward(self, hidden: Float[Tensor, "tokens hidden"]) -> Float[Tensor, "tokens hidden"]:
        gate, up, down = (self.get_submodule(name) for name in self.names)
        return down(self.act(gate(hidden)) * up(hidden))


class Experts(ModuleList):
    """Stands in for the experts of a block; called with what transformers calls them with."""

    def forward(
        self,
        hidden_states: Float[Tensor, "tokens hidden"],
        top_k_index: Int[Tensor, "tokens chosen"],
        top_k_weights: Float[Tensor, "tokens chosen"],
    ) -> Float[Tensor, "tokens hidden"]:
        total = torch.zeros_like(hidden_states)
        for index, expert in enumerate(self):
            expert.tokens, choice = torch.where(top_k_index == index)
            if len(expert.tokens):
                output = expert(hidden_states[expert.tokens]) * top_k_weights[expert.tokens, choice, None]
                total = total.index_add(0, expert.tokens, output.to(total.dtype))
        return total


def unpack(model: Module, model_type: str) -> None:
    """Replace all packed experts of a model by `Experts` with the same weights, one module after another."""
    names = NAMES.get(model_type, USUAL_NAMES)
    for path, module in list(model.named_modules()):
        if _is_packed(module):
            model.set_submodule(path, _unpacked(module, names))


def _is_packed(module: Module) -> bool:
    """Whether these are gated experts without biases, in the layout that is understood here."""
    own = dict(module.named_parameters(recurse=False))
    shapes = own.keys() == {"gate_up_proj", "down_proj"} and all(tensor.ndim == 3 for tensor in own.values())
    return shapes and not getattr(module, "is_transposed", False) and getattr(module, "is_concatenated", True)


def _unpacked(module: Module, names: tuple[str, str, str]) -> Experts:
    both, down, act = (getattr(module, name) for name in ("gate_up_proj", "down_proj", "act_fn"))
    inner = down.shape[2]
    experts = []
    for index in range(len(both)):
        weights = (both[index, :inner], both[index, inner:], down[index])
        experts.append(Expert({name: _linear(part) for name, part in zip(names, weights, strict=True)}, act))
    return Experts(experts)


def _linear(weight: Tensor) -> Linear:
    layer = Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = Parameter(weight.detach().clone(), requires_grad=False)
    return layer
