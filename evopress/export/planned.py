"""The model as checkpoint formats see it before the search."""

from dataclasses import dataclass

from evopress.compressors.base import Compressor
from evopress.compressors.drop import Drop
from evopress.models.language_model import LanguageModel
from evopress.space.shapes import LayerShape, layer_shape
from evopress.space.units import Space


@dataclass(frozen=True, kw_only=True)
class PlannedModel:
    """A model, the compressor that will make its levels, and the units that will have them.

    `lm` has its tokenizer and its dtype, but may be on the `meta` device, without weights. Its checkpoints will be
    compared with the searched model on windows of `window` tokens.
    """

    lm: LanguageModel
    compressor: Compressor | Drop
    space: Space
    window: int

    @property
    def layers(self) -> list[LayerShape]:
        """The shapes of all layers that will have levels."""
        return [layer for unit in self.units for layer in unit]

    @property
    def units(self) -> list[list[LayerShape]]:
        """The shapes of the layers of each unit."""
        return [[layer_shape(self.lm, layer) for layer in unit.layers] for unit in self.space.units]
