"""Applies a profile to a model: which level each layer of each block runs at, and which sub-blocks are left out."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

from torch import Tensor
from transformers import PreTrainedModel

from evopress.models.language_model import LanguageModel
from evopress.space.subblocks import subblocks_of
from evopress.space.units import OUTSIDE, Profile, Space


class DecodedWeights(Protocol):
    """Dense weights of every level of every layer."""

    def get(self, block: int, layer: str, level: int) -> Tensor:
        """The dense weight (rows, cols) of a layer, given by its full name, at a level. Must not be changed."""


@dataclass(frozen=True)
class BlockChoice:
    """What one block is run with: a level of its database per layer (local name), and the sub-blocks left out."""

    levels: tuple[tuple[str, int], ...] = ()
    dropped: frozenset[str] = frozenset()


@dataclass(frozen=True)
class EmbeddingAndHead:
    """Dense weights that stand in for those of the embeddings and of the head; None where the model's own stay."""

    embeddings: Tensor | None = None
    head: Tensor | None = None


def choices_by_block(space: Space, lm: LanguageModel, profile: Profile | None) -> list[BlockChoice]:
    """What every block is run with under `profile`; None is the dense model. Nothing is chosen for what is dropped."""
    choices = [BlockChoice() for _ in range(lm.num_blocks)]
    if profile is None:
        return choices
    chosen = [(block, i) for i, unit in enumerate(space.units) for block in unit.blocks]
    for block, members in groupby(sorted(chosen), key=lambda pair: pair[0]):
        choices[block] = _choice(space, lm, block, [index for _, index in members], profile)
    return choices


def _choice(space: Space, lm: LanguageModel, block: int, members: list[int], profile: Profile) -> BlockChoice:
    prefix = len(lm.block_names[block]) + 1
    levels = [
        (layer[prefix:], profile[i])
        for i in members
        if not space.is_inside_dropped(i, profile)
        for layer in space.units[i].layers
    ]
    dropped = [
        subblock
        for i in members
        if not space.units[i].layers and profile[i] > 0
        for subblock in subblocks_of(space.units[i])
    ]
    return BlockChoice(tuple(levels), frozenset(dropped))


def embedding_and_head_levels(space: Space, profile: Profile | None) -> tuple[tuple[str, int], ...]:
    """Full name and level of the embeddings and of the head, as far as `profile` chooses them."""
    pairs = zip(space.units, profile, strict=True) if profile is not None else ()
    return tuple((layer, level) for unit, level in pairs if not unit.blocks for layer in unit.layers)


def embedding_and_head_weights(
    lm: LanguageModel, weights: DecodedWeights | None, levels: Iterable[tuple[str, int]]
) -> EmbeddingAndHead:
    """The weights of `embedding_and_head_levels`."""
    found = {name: weights.get(OUTSIDE, name, level) for name, level in levels if weights is not None}
    return EmbeddingAndHead(found.get(lm.embedding_and_head[0]), found.get(lm.embedding_and_head[-1]))


@contextmanager
def applied(
    lm: LanguageModel, space: Space, weights: DecodedWeights | None, profile: Profile | None
) -> Iterator[PreTrainedModel]:
    """While open, the model is the one that `profile` describes; None leaves it dense."""
    choices = choices_by_block(space, lm, profile)
    replaced = {
        lm.layer_name(block, local): weights.get(block, lm.layer_name(block, local), level)
        for block, choice in enumerate(choices)
        for local, level in choice.levels
        if weights is not None
    }
    if weights is not None:
        replaced |= {
            name: weights.get(OUTSIDE, name, level) for name, level in embedding_and_head_levels(space, profile)
        }
    with lm.replaced(replaced, {block: choice.dropped for block, choice in enumerate(choices)}) as model:
        yield model
