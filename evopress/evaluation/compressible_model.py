"""A model together with the weights that its units can switch to."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from evopress.models.language_model import LanguageModel
from evopress.space.apply import DecodedWeights, EmbeddingAndHead, embedding_and_head_weights
from evopress.space.choices import BlockChoice, Choices
from evopress.space.units import Profile, Space


@dataclass(frozen=True)
class CompressibleModel:
    """A dense model, its space of profiles, and the decoded weights of all levels.

    `weights` is None for a space whose units have no layers (drops).
    """

    lm: LanguageModel
    space: Space
    weights: DecodedWeights | None

    @cached_property
    def chosen(self) -> Choices:
        """Reads profiles."""
        return Choices(self.space, self.lm)

    def choices(self, profile: Profile | None) -> list[BlockChoice]:
        """The levels and dropped sub-blocks of each block at `profile`; None is the dense model."""
        return self.chosen.of(profile)

    def block_weights(self, block: int, choice: BlockChoice) -> dict[str, Tensor]:
        """The dense weights of a block's layers, by local name."""
        return {
            local: self.layer_weight(block, self.lm.layer_name(block, local), level) for local, level in choice.levels
        }

    def prefetch(self, block: int, choices: Sequence[BlockChoice]) -> None:
        """Start to copy what a block needs of the dense model to the device, if it is offloaded and not the end."""
        if block < len(choices):
            self.lm.prefetch(block, replaced={local for local, _ in choices[block].levels})

    def layer_weight(self, block: int, layer: str, level: int) -> Tensor:
        """The dense weight of a layer, given by its full name, at a level. Raises ValueError without a database."""
        if self.weights is None:
            raise ValueError("this space has layers but no database was given")
        return self.weights.get(block, layer, level)

    def embedding_and_head(self, profile: Profile | None) -> EmbeddingAndHead:
        """The weights of embeddings and head at `profile`, if it chooses levels for them."""
        return embedding_and_head_weights(self.lm, self.weights, self.chosen.outside(profile))
