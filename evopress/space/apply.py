"""Applies a profile to a model: gives every layer its level, and leaves out the dropped sub-blocks."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from torch import Tensor
from transformers import PreTrainedModel

from evopress.models.language_model import LanguageModel
from evopress.models.structure import ModelStructure
from evopress.space.choices import BlockChoice, Choices, LayerLevel
from evopress.space.units import OUTSIDE, Profile, Space


class DecodedWeights(Protocol):
    """Dense weights of every layer at every level."""

    def get(self, block: int, layer: str, level: int) -> Tensor:
        """The dense weight (rows, cols) of a layer, given by its full name, at a level. Callers must not change it."""


@dataclass(frozen=True)
class EmbeddingAndHead:
    """Dense weights that replace those of the embeddings and of the head. None keeps the model's weight."""

    embeddings: Tensor | None = None
    head: Tensor | None = None


def embedding_and_head_weights(
    lm: ModelStructure, weights: DecodedWeights | None, levels: Iterable[LayerLevel]
) -> EmbeddingAndHead:
    """The weights of the levels that `Choices.outside` returned. A shared weight is in both fields."""
    if weights is None:
        return EmbeddingAndHead()
    weight_of = {name: weights.get(OUTSIDE, name, level) for name, level in levels}
    return EmbeddingAndHead(weight_of.get(lm.embedding_and_head[0]), weight_of.get(lm.embedding_and_head[-1]))


@contextmanager
def applied(
    lm: LanguageModel, space: Space, weights: DecodedWeights | None, profile: Profile | None
) -> Iterator[PreTrainedModel]:
    """While open, the model has the weights that `profile` describes, all in memory at once. None leaves it dense.

    `weights` is None if the space only drops sub-blocks.
    """
    chosen = Choices(space, lm)
    choices = chosen.of(profile)
    replacements = _outside_weights(weights, chosen.outside(profile))
    for block in range(lm.num_blocks):
        block_weights = _weights_of_block(lm, choices, weights, block)
        replacements |= {lm.layer_name(block, local): weight for local, weight in block_weights.items()}
    with lm.replaced(replacements, _dropped(choices)) as model:
        yield model


@contextmanager
def runnable(
    lm: LanguageModel, space: Space, weights: DecodedWeights | None, profile: Profile | None
) -> Iterator[PreTrainedModel]:
    """While open, the model computes what `profile` describes. None leaves it dense.

    The weights of a block are decoded when the block runs, so there is no second copy of all weights. The parameters of
    the blocks still show the dense weights. `weights` is None if the space only drops sub-blocks.
    """
    chosen = Choices(space, lm)
    choices = chosen.of(profile)
    weights_of = partial(_weights_of_block, lm, choices, weights) if any(choice.levels for choice in choices) else None
    with lm.replaced(_outside_weights(weights, chosen.outside(profile)), _dropped(choices), weights_of) as model:
        yield model


def _weights_of_block(
    lm: ModelStructure, choices: Sequence[BlockChoice], weights: DecodedWeights | None, block: int
) -> dict[str, Tensor]:
    """The weight of each layer of the block that has a level in the profile, by its local name."""
    if weights is None:
        return {}
    return {local: weights.get(block, lm.layer_name(block, local), level) for local, level in choices[block].levels}


def _outside_weights(weights: DecodedWeights | None, levels: Iterable[LayerLevel]) -> dict[str, Tensor]:
    """The weights of the embeddings and the head, by full name, if the profile has levels for them."""
    return {} if weights is None else {name: weights.get(OUTSIDE, name, level) for name, level in levels}


def _dropped(choices: Sequence[BlockChoice]) -> dict[int, frozenset[str]]:
    return {block: choice.dropped for block, choice in enumerate(choices)}
