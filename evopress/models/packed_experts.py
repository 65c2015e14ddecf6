"""The layouts in which transformers stores the matrices of all experts of a block as two tensors.

`gate_up_proj` holds the gate and up matrices, and `down_proj` the down matrices. In each layout, they can be split into
one matrix per expert and joined again.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

GATE_UP, DOWN, BIAS = "gate_up_proj", "down_proj", "_bias"


@dataclass(frozen=True, kw_only=True)
class PackedLayout:
    """How two tensors hold the matrices of all experts.

    `interleaved`: gate and up rows alternate; otherwise all gate rows come first. `transposed`: the shape is (experts,
    inputs, outputs); otherwise (experts, outputs, inputs). `has_biases`: there are two more tensors, for biases.
    `in_files`: checkpoints also have the packed tensors; otherwise they have one matrix per expert, and transformers
    packs them.
    """

    interleaved: bool = False
    transposed: bool = False
    has_biases: bool = False
    in_files: bool = False

    @property
    def parameters(self) -> set[str]:
        """The names of the packed tensors."""
        return {f"{name}{kind}" for name in (GATE_UP, DOWN) for kind in ("", BIAS)[: 1 + self.has_biases]}

    def fits(self, tensors: Mapping[str, Tensor]) -> bool:
        """Whether tensors have the names and shapes of this layout."""
        if tensors.keys() != self.parameters or any(tensors[name].ndim != 3 for name in (GATE_UP, DOWN)):
            return False
        (num, rows, hidden), down = self._as_matrices(tensors[GATE_UP]).shape, self._as_matrices(tensors[DOWN]).shape
        return rows % 2 == 0 and down == (num, hidden, rows // 2)

    def split(self, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """The weights, and biases if there are any, of all gates, ups and downs; each tensor (experts, outputs, …)."""
        gate, up, down = {}, {}, {}
        for name, tensor in tensors.items():
            kind = "bias" if name.endswith(BIAS) else "weight"
            tensor = tensor if kind == "bias" else self._as_matrices(tensor)
            if name.startswith(DOWN):
                down[kind] = tensor
                continue
            inner = tensor.shape[1] // 2
            gate[kind] = tensor[:, ::2] if self.interleaved else tensor[:, :inner]
            up[kind] = tensor[:, 1::2] if self.interleaved else tensor[:, inner:]
        return gate, up, down

    def join(self, *parts: Tensor) -> Tensor:
        """Pack the gates and the ups, or only the downs; weights (experts, outputs, inputs) or biases."""
        interleaved = self.interleaved and len(parts) == 2
        joined = torch.stack(parts, 2).flatten(1, 2) if interleaved else torch.cat(parts, 1)
        return self._as_matrices(joined).contiguous()

    def _as_matrices(self, tensor: Tensor) -> Tensor:
        """From the packed order of dimensions to (experts, outputs, inputs), or back."""
        return tensor.transpose(1, 2) if self.transposed and tensor.ndim == 3 else tensor


ONE_PER_MATRIX = PackedLayout()
"""The layout of most models: packed in memory, but not in files."""

LAYOUTS: Mapping[str, PackedLayout] = {
    "llama4_text": PackedLayout(transposed=True, in_files=True),
    "gpt_oss": PackedLayout(transposed=True, interleaved=True, has_biases=True, in_files=True),
}
"""The layouts of other types of models."""


def layout_of(model_type: str) -> PackedLayout:
    """The layout of the experts of a type of models."""
    return LAYOUTS.get(model_type, ONE_PER_MATRIX)


_MATRIX = re.compile(r"(?P<path>.+\.experts)\.(?P<expert>\d+)\.(?P<matrix>gate|up|down)_proj\.(?P<kind>weight|bias)")


def packed_name(name: str) -> str:
    """The name of the packed tensor that holds a tensor of an expert. Other names stay as they are."""
    match = _MATRIX.fullmatch(name)
    if not match:
        return name
    return f"{match['path']}.{DOWN if match['matrix'] == 'down' else GATE_UP}{BIAS * (match['kind'] == 'bias')}"


def packed_names(names: Iterable[str]) -> list[str]:
    """The names of a model whose experts are packed, each once."""
    return list(dict.fromkeys(map(packed_name, names)))


def packed_state(state: Mapping[str, Tensor], layout: PackedLayout) -> dict[str, Tensor]:
    """The tensors of a model with one matrix per expert, packed."""
    packed: dict[str, Tensor] = {}
    parts: dict[str, dict[str, dict[int, Tensor]]] = {}
    for name, tensor in state.items():
        if match := _MATRIX.fullmatch(name):
            by_expert = parts.setdefault(packed_name(name), {}).setdefault(match["matrix"], {})
            by_expert[int(match["expert"])] = tensor
        else:
            packed[name] = tensor
    for name, matrices in parts.items():
        in_order = [matrices[matrix] for matrix in ("gate", "up", "down") if matrix in matrices]
        packed[name] = layout.join(*(torch.stack([part[index] for index in sorted(part)]) for part in in_order))
    return packed
