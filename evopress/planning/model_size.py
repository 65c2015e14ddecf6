"""The sizes of a model that determine its memory and operations. Reads only shapes, so no weights are needed."""

from collections.abc import Iterable

from torch.nn import Module

from evopress.models.active_experts import share_of_tokens
from evopress.models.offload import BLOCKS_ON_DEVICE
from evopress.models.structure import ModelStructure


def group_shapes(model: ModelStructure, block: int) -> list[tuple[tuple[int, ...], int]]:
    """For each group of layers in a block, the rows of each layer, and the columns, which are the same for all."""
    weights = [[model.linear(block, local).weight for local in group] for group in model.layer_groups(block)]
    return [(tuple(len(weight) for weight in group), group[0].shape[1]) for group in weights]


def kinds_of_blocks(model: ModelStructure) -> list[int]:
    """The first block of each kind, where blocks of one kind have the same parameters."""
    return sorted(set(model.alike))


def active_weights(model: ModelStructure, block: int) -> float:
    """How many weights of a block multiply each token, on average."""
    weights = {local: model.linear(block, local).weight.numel() for local in model.layers(block)}
    return sum(share_of_tokens(model, block, local) * number for local, number in weights.items())


def resident_weights(model: ModelStructure, *, offload: bool) -> int:
    """How many weights are in memory at once: all, or with `offload` two blocks and everything outside the blocks."""
    blocks = list(range(model.num_blocks))
    if offload:
        blocks = sorted(blocks, key=lambda block: _num_weights(model.blocks[block]))[-BLOCKS_ON_DEVICE:]
    return weights_with_blocks(model, blocks)


def weights_with_blocks(model: ModelStructure, blocks: Iterable[int]) -> int:
    """How many weights these blocks and everything outside the blocks have."""
    outside = _num_weights(model.model) - sum(map(_num_weights, model.blocks))
    return outside + sum(_num_weights(model.blocks[block]) for block in blocks)


def _num_weights(module: Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
