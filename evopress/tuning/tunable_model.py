"""A compressed model whose floating-point numbers can change. Its weights stay packed. A block is decoded when it runs.

A parameter is a tensor of changes r. It stands for the value ``start + r·unit``; see `parameters.py`.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from evopress.database.resident import PackedLevels
from evopress.evaluation.compressible_model import CompressibleModel
from evopress.space.choices import BlockChoice
from evopress.space.units import Profile
from evopress.tuning.parameters import (
    Changes,
    changed,
    dense_part,
    final_norm_name,
    is_norm,
    kind_of,
    layers_beside_drops,
    norms_of_block,
    values_of,
)
from evopress.tuning.settings import Kind
from evopress.weights.base import CompressedWeight


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
        for name in self.names_of_block(block):
            if name.endswith(".weight"):
                local = name.removeprefix(f"{lm.block_names[block]}.").removesuffix(".weight")
                weights[local] = changed(dense_part(lm.model.get_parameter(name).to(lm.device)), changes[name]).to(
                    lm.dtype
                )
        return weights

    def final_norm_weight(self, changes: Changes) -> Tensor | None:
        """The weight of the final norm, with a graph back to `changes`; None if it is not trained."""
        name, lm = final_norm_name(self.lm), self.lm
        if name not in changes:
            return None
        return changed(dense_part(lm.model.get_parameter(name)), changes[name]).to(lm.dtype)

    def names_of_block(self, block: int) -> list[str]:
        """The names of the parameters of a block."""
        prefix = f"{self.lm.block_names[block]}."
        return [name for name in self.changes if name.startswith(prefix)]


def tunable_model(
    model: CompressibleModel, profile: Profile, levels: PackedLevels | None, *, kinds: Collection[Kind]
) -> TunableModel:
    """The model at `profile` before training. Reads the packed weights of all its layers. `kinds` are trained."""
    lm, choices = model.lm, model.choices(profile)
    packed: dict[str, CompressedWeight] = {}
    changes: dict[str, Tensor] = {}
    for block, choice in enumerate(choices):
        for local, level in choice.levels:
            name = lm.layer_name(block, local)
            assert levels is not None
            packed[name] = levels.read(block, name, level).to(lm.device)
            changes |= {f"{name}.{part}": content.value for part, content in packed[name].float_parts().items()}
        for local, weight in (*norms_of_block(lm, block, choice), *layers_beside_drops(lm, choices, block)):
            changes[f"{lm.layer_name(block, local)}.weight"] = weight
    if is_norm(lm.model.get_submodule(lm.family.norm)):
        changes[final_norm_name(lm)] = lm.model.get_parameter(final_norm_name(lm))
    zeros = {
        name: torch.zeros(start.shape, device=lm.device)
        for name, start in changes.items()
        if kind_of(name, start) in kinds
    }
    return TunableModel(lm, model.space, model.weights, profile, packed, zeros)
