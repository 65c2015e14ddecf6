"""Mixtures of experts: how many of the experts each token goes through."""

from evopress.models.family_match import expert_of
from evopress.models.structure import ModelStructure


def has_experts(model: ModelStructure) -> bool:
    """Whether some block has experts of which a token uses only some."""
    return any(
        share_of_tokens(model, block, local) < 1 for block in range(model.num_blocks) for local in model.layers(block)
    )


def share_of_tokens(model: ModelStructure, block: int, local: str) -> float:
    """The share of tokens that go through a layer: 1, or less for a layer of an expert."""
    expert = expert_of(local)
    if expert is None:
        return 1.0
    num_experts = len(list(model.blocks[block].get_submodule(expert[0]).children()))
    return getattr(model.text_config, "num_experts_per_tok", num_experts) / num_experts


def active_parameters(model: ModelStructure) -> int:
    """How many parameters a token uses: all, without the experts that it is not routed to."""
    unused = (
        (1 - share_of_tokens(model, block, local)) * model.linear(block, local).weight.numel()
        for block in range(model.num_blocks)
        for local in model.layers(block)
    )
    return sum(parameter.numel() for parameter in model.model.parameters()) - round(sum(unused))
