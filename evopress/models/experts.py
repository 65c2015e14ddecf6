"""Unpacks mixtures of experts, so that every matrix of every expert is a linear layer like any other.

transformers stores the experts of a block as two parameters, `gate_up_proj` (experts, 2·inner, hidden) and `down_proj`
(experts, hidden, inner). Checkpoints and inference engines name one matrix per expert. `unpack_experts` gives the
modules in memory the names of the checkpoint. Routers are not changed.
"""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import Linear, Module, ModuleList, Parameter

from evopress.models.families import FAMILIES

DEFAULT_NAMES = ("gate_proj", "up_proj", "down_proj")
"""The names of an expert's matrices in checkpoints, unless the family says otherwise."""


class Expert(Module):
    """down(act(gate x) · up x). `tokens` has the positions of the tokens that were last routed to this expert."""

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
    """Replaces the packed experts of a block. transformers calls both with the same arguments."""

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


def unpack_experts(model: Module, model_type: str) -> None:
    """Replace all packed experts of a model by `Experts` with the same weights, one module after another."""
    names = matrix_names(model_type)
    for path, module in list(model.named_modules()):
        if _is_packed(module):
            model.set_submodule(path, _unpacked(module, names))


def matrix_names(model_type: str) -> tuple[str, str, str]:
    """The names of the gate, up and down matrix of an expert in checkpoints."""
    family = FAMILIES.get(model_type)
    paths = [path for group in family.layers for path in group if ".*." in path] if family else []
    if not paths:
        return DEFAULT_NAMES
    gate, up, down = (path.rpartition(".")[2] for path in paths)
    return gate, up, down


def _is_packed(module: Module) -> bool:
    """Whether the module holds gated experts without biases, in the only packed layout that is supported."""
    parameters = dict(module.named_parameters(recurse=False))
    if parameters.keys() != {"gate_up_proj", "down_proj"} or any(tensor.ndim != 3 for tensor in parameters.values()):
        return False
    return not getattr(module, "is_transposed", False) and getattr(module, "is_concatenated", True)


def _unpacked(module: Module, names: tuple[str, str, str]) -> Experts:
    gate_up, down, act = (getattr(module, name) for name in ("gate_up_proj", "down_proj", "act_fn"))
    inner = down.shape[2]
    experts = []
    for index in range(len(gate_up)):
        weights = (gate_up[index, :inner], gate_up[index, inner:], down[index])
        layers = {name: _linear(weight) for name, weight in zip(names, weights, strict=True)}
        experts.append(Expert(layers, act))
    return Experts(experts)


def _linear(weight: Tensor) -> Linear:
    layer = Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = Parameter(weight.detach().clone(), requires_grad=False)
    return layer
