"""The bytes that a token uses in a mixture of experts, which are fewer than those of all experts."""

from evopress.models.active_experts import share_of_tokens
from evopress.models.structure import ModelStructure
from evopress.space.droppable import subblocks_of
from evopress.space.units import Profile, Space, Unit


def active_bytes(space: Space, model: ModelStructure, profile: Profile) -> int:
    """Bytes that a token uses: everything outside the experts, and the share of the experts that it is routed to.

    `size_bytes` of the space counts all experts.
    """
    used = (
        space.level(index, profile).size_bytes * _share(model, unit)
        for index, unit in enumerate(space.units)
        if unit.num_weights
    )
    return space.fixed_bytes + round(sum(used))


def _share(model: ModelStructure, unit: Unit) -> float:
    """The share of a unit's weights that a token uses, on average."""
    layers = [(block, local) for block in unit.blocks for local in _layers_of(model, unit, block)]
    if not layers:  # the embeddings or the head
        return 1.0
    sizes = [model.linear(block, local).weight.numel() for block, local in layers]
    shares = [share_of_tokens(model, block, local) for block, local in layers]
    return sum(size * share for size, share in zip(sizes, shares, strict=True)) / sum(sizes)


def _layers_of(model: ModelStructure, unit: Unit, block: int) -> list[str]:
    """Local names of the layers of a unit in a block."""
    if unit.layers:
        return [layer.removeprefix(f"{model.block_names[block]}.") for layer in unit.layers]
    return [local for subblock in subblocks_of(unit) for local in model.subblock_layers(block, subblock)]
