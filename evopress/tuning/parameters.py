"""What can be tuned: the parts of packed weights, norms, and dense weights next to dropped sub-blocks.

A parameter is a tensor of changes r. It stands for the value ``start + r·unit``. For the scales of a layer, start and
unit are both the stored scale, so r is a relative change. For norms and weights, the unit is their root mean square.
The name of a parameter is that of the layer and the part (`model.layers.0.mlp.up_proj.scales`), or for norms and dense
weights the name in the model (`model.norm.weight`).
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import Module

from evopress.models.language_model import LanguageModel
from evopress.models.subblocks import SUBBLOCKS
from evopress.space.choices import BlockChoice
from evopress.tuning.settings import Kind
from evopress.weights.base import CompressedWeight, FloatPart
from evopress.weights.sparse import SparseWeight

Changes = Mapping[str, Tensor]
"""The tensors of changes r by the names of their parameters."""


def values_of(name: str, packed: CompressedWeight, changes: Changes) -> dict[str, Tensor]:
    """The values of the float parts of a layer; empty if none has changes. Parts without changes keep their values."""
    parts = packed.float_parts()
    if not any(f"{name}.{part}" in changes for part in parts):
        return {}
    return {
        part: changed(content, changes[f"{name}.{part}"]) if f"{name}.{part}" in changes else content.value
        for part, content in parts.items()
    }


def changed(part: FloatPart, change: Tensor) -> Tensor:
    """The value start + r·unit of a parameter."""
    return part.value + change * part.unit


def dense_part(weight: Tensor) -> FloatPart:
    """A parameter of the dense model, with the unit of its changes."""
    value = weight.detach().float()
    size = value.square().mean().sqrt()
    return FloatPart(value, torch.where(size > 0, size, 1.0).expand_as(value))


def kind_of(name: str, change: Tensor) -> Kind:
    """The kind of a parameter."""
    if name.endswith(".weight"):
        return "norms" if change.ndim == 1 else "weights"
    return "weights" if name.endswith(f".{SparseWeight.VALUES}") else "scales"


def is_norm(module: Module) -> bool:
    """Whether the weight of a module is a vector, as that of a norm is."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 1 and "weight" in dict(module.named_parameters(recurse=False))


def norms_of_block(lm: LanguageModel, block: int, choice: BlockChoice) -> Iterator[tuple[str, Tensor]]:
    """Local names and weights of the norms of a block, without those inside dropped sub-blocks."""
    dropped = tuple(f"{lm.subblock_path(block, subblock)}." for subblock in choice.dropped)
    for local, module in lm.blocks[block].named_modules():
        if is_norm(module) and not local.startswith(dropped):
            yield local, module.get_parameter("weight")


def layers_beside_drops(lm: LanguageModel, choices: Sequence[BlockChoice], block: int) -> Iterator[tuple[str, Tensor]]:
    """Local names and weights of the dense layers of a block in sub-blocks that run just before or after a dropped one.

    Sub-blocks run in the order attention, MLP, block after block.
    """
    is_dropped = [subblock in choice.dropped for choice in choices for subblock in SUBBLOCKS]
    quantized = {local for local, _ in choices[block].levels}
    for place, subblock in enumerate(SUBBLOCKS, start=len(SUBBLOCKS) * block):
        if is_dropped[place] or not any(is_dropped[max(0, place - 1) : place + 2]):
            continue
        for local in lm.subblock_layers(block, subblock):
            if local not in quantized:
                yield local, lm.linear(block, local).weight


def final_norm_name(lm: LanguageModel) -> str:
    """The name of the weight of the final norm."""
    return f"{lm.family.norm}.weight"
