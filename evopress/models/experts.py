"""Unpacks mixtures of experts, so that every matrix of every expert is a linear layer like any other.

transformers stores the experts of a block as two tensors in memory. Most checkpoints and inference engines have one
matrix per expert. `unpack_experts` gives the modules in memory these matrices and names. Routers are not changed.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import Linear, Module, ModuleList, Parameter

from evopress.models.families import FAMILIES
from evopress.models.packed_experts import PackedLayout, layout_of

DEFAULT_NAMES = ("gate_proj", "up_proj", "down_proj")
"""The names of an expert's matrices in checkpoints, unless the family says otherwise."""

Gate = Callable[[Tensor, Tensor], Tensor]
"""Maps the outputs of an expert's gate and up matrices to the input of its down matrix."""


class Expert(Module):
    """down(combine(gate x, up x)). `tokens` has the positions of the tokens that were last routed to this expert."""

    def __init__(self, layers: Mapping[str, Linear], combine: Gate):
        super().__init__()
        self.names = tuple(layers)
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.combine = combine
        self.tokens: Tensor | None = None

    def forward(self, hidden: Float[Tensor, "tokens hidden"]) -> Float[Tensor, "tokens hidden"]:
        gate, up, down = (self.get_submodule(name) for name in self.names)
        return down(self.combine(gate(hidden), up(hidden)))


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


class ExpertsOfScaledTokens(ModuleList):
    """Replaces the packed experts of Llama 4. Each expert gets all tokens, multiplied by their weights for this expert.

    The weight is 0 if the expert was not chosen for a token. Then nothing is computed, because the output is 0 as well.
    """

    def forward(self, hidden_states: Float[Tensor, "experts*tokens hidden"]) -> Float[Tensor, "experts*tokens hidden"]:
        inputs = hidden_states.view(len(self), -1, hidden_states.shape[-1])
        outputs = [self._output(expert, rows) for expert, rows in zip(self, inputs, strict=True)]
        return torch.cat(outputs)

    @staticmethod
    def _output(expert: Module, rows: Float[Tensor, "tokens hidden"]) -> Float[Tensor, "tokens hidden"]:
        assert isinstance(expert, Expert)
        (expert.tokens,) = torch.where(rows.any(-1))
        output = torch.zeros_like(rows)
        return output.index_add(0, expert.tokens, expert(rows[expert.tokens])) if len(expert.tokens) else output


def unpack_experts(model: Module, model_type: str) -> None:
    """Replace all packed experts of a model by modules with the same weights, one module after another."""
    names, layout = matrix_names(model_type), layout_of(model_type)
    for path, module in list(model.named_modules()):
        tensors = dict(module.named_parameters(recurse=False))
        combine = _gate_of(module) if layout.fits(tensors) and _has_layout(module, layout) else None
        if combine is None:
            continue
        kind = ExpertsOfScaledTokens if model_type == "llama4_text" else Experts
        model.set_submodule(path, kind(_experts(layout, tensors, names=names, combine=combine)))


def matrix_names(model_type: str) -> tuple[str, str, str]:
    """The names of the gate, up and down matrix of an expert in checkpoints."""
    family = FAMILIES.get(model_type)
    paths = [path for group in family.layers for path in group if ".*." in path] if family else []
    if not paths:
        return DEFAULT_NAMES
    gate, up, down = (path.rpartition(".")[2] for path in paths)
    return gate, up, down


def gated(gate: Tensor, up: Tensor, *, act: Callable[[Tensor], Tensor]) -> Tensor:
    """act(gate) · up, as in most models."""
    return act(gate) * up


def clamped_gated(gate: Tensor, up: Tensor, *, alpha: float, limit: float) -> Tensor:
    """gate · sigmoid(α gate) · (up + 1), with both inputs clamped, as in gpt-oss."""
    gate, up = gate.clamp(max=limit), up.clamp(min=-limit, max=limit)
    return (up + 1) * (gate * torch.sigmoid(gate * alpha))


def _has_layout(module: Module, layout: PackedLayout) -> bool:
    """Whether the module's class states this layout, or none. Shapes alone may fit several layouts."""
    transposed, concatenated = (getattr(module, name, None) for name in ("is_transposed", "is_concatenated"))
    return transposed in (None, layout.transposed) and concatenated in (None, not layout.interleaved)


def _gate_of(module: Module) -> Gate | None:
    """The function that combines gate and up outputs in a packed module; None if it is neither of the two above.

    The functions are compared on numbers that are large enough for any clamp to have an effect.
    """
    known: dict[str, Any] = vars(module) | dict(module.named_children())
    if "act_fn" in known:
        combine: Gate = partial(gated, act=known["act_fn"])
    elif "alpha" in known and "limit" in known:
        combine = partial(clamped_gated, alpha=known["alpha"], limit=known["limit"])
    else:
        return None
    apply_gate: Any = getattr(module, "_apply_gate", None)
    if apply_gate is None:
        return combine if type(module).__name__ == "Llama4TextExperts" else None
    gate, up = torch.linspace(-100, 100, 64), torch.linspace(-100, 100, 64).view(8, 8).t().flatten()
    interleaved = not getattr(module, "is_concatenated", True)
    both = torch.stack([gate, up], -1).flatten() if interleaved else torch.cat([gate, up])
    return combine if torch.allclose(apply_gate(both), combine(gate, up)) else None


def _experts(
    layout: PackedLayout, tensors: Mapping[str, Tensor], *, names: tuple[str, str, str], combine: Gate
) -> list[Expert]:
    parts = dict(zip(names, layout.split(tensors), strict=True))
    num_experts = len(next(iter(tensors.values())))
    return [
        Expert({name: _linear(part, index) for name, part in parts.items()}, combine) for index in range(num_experts)
    ]


def _linear(part: Mapping[str, Tensor], index: int) -> Linear:
    """The layer of one expert, from the weights and biases of all."""
    outputs, inputs = part["weight"].shape[1:]
    layer = Linear(inputs, outputs, bias="bias" in part, device="meta")
    for kind, tensor in part.items():
        copied = tensor[index].detach().clone(memory_format=torch.contiguous_format)
        setattr(layer, kind, Parameter(copied, requires_grad=False))
    return layer
