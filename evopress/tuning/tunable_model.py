"""A compressed model whose scales and norms can change. Its weights stay packed. A block is decoded when it runs.

A parameter is a tensor of changes r. It stands for the value ``start + r·unit``. For the scales of a layer, start and
unit are both the stored scale, so r is a relative change. For a norm, the unit is the root mean square of its weights.
The name of a parameter is that of the layer and the part (`model.layers.0.mlp.up_proj.scales`), or for a norm its name
in the model (`model.norm.weight`).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Module

from evopress.database.resident import PackedLevels
from evopress.evaluation.compressible_model import CompressibleModel
from evopress.models.language_model import LanguageModel
from evopress.space.apply import BlockChoice
from evopress.space.units import Profile
from evopress.weights.base import CompressedWeight, FloatPart

Changes = Mapping[str, Tensor]
"""The tensors of changes r by the names of their parameters."""


@dataclass(frozen=True)
class TunableModel(CompressibleModel):
    """The model at `profile`. `packed` has its weights by full layer name. Training replaces tensors in `changes`."""

    profile: Profile
    packed: Mapping[str, CompressedWeight]
    changes: dict[str, Tensor]

    def block_weights(self, block: int, choice: BlockChoice) -> dict[str, Tensor]:
        return self.decoded(block, choice, self.changes)

    def decoded(self, block: int, choice: BlockChoice, changes: Changes) -> dict[str, Tensor]:
        """The weights of the layers and trained norms of a block, by local name, with a graph back to `changes`."""
        lm = self.lm
        weights = {}
        for local, _ in choice.levels:
            name = lm.layer_name(block, local)
            packed = self.packed[name]
            values = values_of(name, packed, changes)
            weights[local] = packed.dense_with(values).to(lm.dtype) if values else packed.dense(lm.dtype)
        for local, weight in norms_of_block(lm, block, choice):
            name = f"{lm.layer_name(block, local)}.weight"
            if name in changes:
                weights[local] = changed(norm_part(weight.to(lm.device)), changes[name]).to(lm.dtype)
        return weights

    def final_norm_weight(self, changes: Changes) -> Tensor | None:
        """The weight of the final norm, with a graph back to `changes`; None if it is not trained."""
        name, lm = final_norm_name(self.lm), self.lm
        if name not in changes:
            return None
        return changed(norm_part(lm.model.get_parameter(name)), changes[name]).to(lm.dtype)

    def names_of_block(self, block: int) -> list[str]:
        """The names of the parameters of a block."""
        prefix = f"{self.lm.block_names[block]}."
        return [name for name in self.changes if name.startswith(prefix)]


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


def norm_part(weight: Tensor) -> FloatPart:
    """The weight of a norm, with the unit of its changes."""
    value = weight.detach().float()
    size = value.square().mean().sqrt()
    return FloatPart(value, torch.where(size > 0, size, 1.0).expand_as(value))


def is_norm(module: Module) -> bool:
    """Whether the weight of a module is a vector, as that of a norm is."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 1 and "weight" in dict(module.named_parameters(recurse=False))


def norms_of_block(lm: LanguageModel, block: int, choice: BlockChoice) -> Iterator[tuple[str, Tensor]]:
    """Local names and weights of the norms of a block, without those inside dropped sub-blocks."""
    paths = {"attention": lm.family.attention, "mlp": lm.family.mlp}
    dropped = tuple(f"{paths[subblock]}." for subblock in choice.dropped)
    for local, module in lm.blocks[block].named_modules():
        if is_norm(module) and not local.startswith(dropped):
            yield local, module.get_parameter("weight")


def final_norm_name(lm: LanguageModel) -> str:
    """The name of the weight of the final norm."""
    return f"{lm.family.norm}.weight"


def tunable_model(
    model: CompressibleModel, profile: Profile, levels: PackedLevels | None, *, kinds: frozenset[str]
) -> TunableModel:
    """The model at `profile` before training. Reads the packed weights of all its layers.

    `kinds` says what is trained: "scales", "norms" or both.
    """
    lm = model.lm
    packed: dict[str, CompressedWeight] = {}
    changes: dict[str, Tensor] = {}
    for block, choice in enumerate(model.choices(profile)):
        for local, level in choice.levels:
            name = lm.layer_name(block, local)
            assert levels is not None
            packed[name] = levels.read(block, name, level).to(lm.device)
            parts = packed[name].float_parts() if "scales" in kinds else {}
            changes |= {f"{name}.{part}": torch.zeros_like(content.value) for part, content in parts.items()}
        for local, weight in norms_of_block(lm, block, choice) if "norms" in kinds else ():
            changes[f"{lm.layer_name(block, local)}.weight"] = torch.zeros(weight.shape, device=lm.device)
    if "norms" in kinds and is_norm(lm.model.get_submodule(lm.family.norm)):
        last = lm.model.get_parameter(final_norm_name(lm))
        changes[final_norm_name(lm)] = torch.zeros(last.shape, device=lm.device)
    return TunableModel(lm, model.space, model.weights, profile, packed, changes)
