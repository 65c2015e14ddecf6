"""The groups of layers that are solved together, in each block and outside the blocks."""

from evopress.models.structure import ModelStructure
from evopress.space.units import OUTSIDE

LayerNames = tuple[str, ...]
"""Full names of layers that read the same input."""


def groups_of_block(lm: ModelStructure, block: int) -> list[LayerNames]:
    """The layers of a block, grouped by the input that they share.

    For `OUTSIDE`, the embeddings and the head are one group each, or a single group if they share a weight.
    """
    if block == OUTSIDE:
        return [(name,) for name in lm.embedding_and_head]
    return [tuple(lm.layer_name(block, local) for local in group) for group in lm.layer_groups(block)]
