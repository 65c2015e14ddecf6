"""The sizes of a model that determine its memory and operations. Reads only shapes, so no weights are needed."""

from evopress.models.family_match import expert_of
from evopress.models.offload import BLOCKS_ON_DEVICE
from evopress.models.structure import ModelStructure


def group_shapes(model: ModelStructure) -> list[tuple[tuple[int, ...], int]]:
    """For each group of layers in a block, the rows of each layer, and the columns, which are the same for all."""
    weights = [[model.linear(0, local).weight for local in group] for group in model.layer_groups]
    return [(tuple(len(weight) for weight in group), group[0].shape[1]) for group in weights]


def active_weights(model: ModelStructure) -> float:
    """How many weights of a block multiply each token, on average."""
    layers = [local for group in model.layer_groups for local in group]
    return sum(share_of_tokens(model, local) * model.linear(0, local).weight.numel() for local in layers)


def share_of_tokens(model: ModelStructure, local: str) -> float:
    """The share of tokens that go through a layer: 1, or less for a layer of an expert."""
    expert = expert_of(local)
    if expert is None:
        return 1.0
    num_experts = len(list(model.blocks[0].get_submodule(expert[0]).children()))
    return getattr(model.text_config, "num_experts_per_tok", num_experts) / num_experts


def resident_weights(model: ModelStructure, *, offload: bool) -> int:
    """How many weights are in memory at once: all, or with `offload` two blocks and everything outside the blocks."""
    num_weights = sum(parameter.numel() for parameter in model.model.parameters())
    if not offload:
        return num_weights
    in_blocks = [sum(parameter.numel() for parameter in block.parameters()) for block in model.blocks]
    return num_weights - sum(in_blocks) + sum(sorted(in_blocks)[-BLOCKS_ON_DEVICE:])
