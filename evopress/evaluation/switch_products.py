"""Multiplies the gradients at the outputs of layers with the changes that level switches make to these outputs."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate

import torch
from jaxtyping import Float, Int
from torch import Tensor

from evopress.evaluation.compressible_model import CompressibleModel
from evopress.evaluation.switch_gradients import HeadGradients, LayerGradients
from evopress.space.units import OUTSIDE, Profile


class SwitchProducts:
    """The mean of γᵀΔ and the half mean of its squares of every switch, where γᵀΔ is summed over the layers of a unit.

    γ is a gradient at the output of a layer, and Δ is the change of that output if the unit switches to another level.
    There is a switch for every level of every unit, in the order of the units. The product is zero for the level that
    `profile` already has. `first` (switches,) has the means for the first gradient over the tokens, `second` the half
    means of squares for all other gradients. Both are complete for a unit once all of its blocks were added, from the
    last to the first, and `finish` completes those outside of the blocks.
    """

    def __init__(self, model: CompressibleModel, profile: Profile, *, num_gradients: int, num_tokens: int):
        self.model = model
        self.profile = profile
        self._first_row = [0, *accumulate(len(unit.levels) for unit in model.space.units)]
        self.first, self.second = torch.zeros(2, self._first_row[-1], device=model.lm.device)
        self._shape = (num_gradients, num_tokens)
        self._products: dict[int, Float[Tensor, "levels gradients tokens"]] = {}  # of units that are not complete

    def add_head(self, head: HeadGradients, first_token: int) -> None:
        """Add the switches of the head on a chunk of tokens that starts at `first_token`."""
        name = self.model.lm.embedding_and_head[-1]
        current = self.model.embedding_and_head(self.profile).head
        span = slice(first_token, first_token + len(head.inputs))
        for products, weight in self._outside_switches(name):
            assert current is not None
            change = head.inputs @ (weight - current).T
            products[:, span] += (head.logit_gradients * change).sum(-1).float()

    def add_block(self, block: int, layers: Mapping[str, LayerGradients]) -> None:
        """Add the switches of the layers of a block, given by their full names."""
        members = [
            (index, name)
            for index, unit in enumerate(self.model.space.units)
            if block in unit.blocks
            for name in unit.layers
            if name in layers
        ]
        for index, name in members:
            for products, weight in self._switches(index, block, name):
                _add_layer(products, layers[name], weight)
        for index in [index for index in self._products if min(self._blocks_of(index)) == block]:
            self._complete(index)

    def add_embeddings(
        self,
        tokens: Int[Tensor, "batch time"],
        state: Float[Tensor, "batch time hidden"],
        gradients: Float[Tensor, "gradients batch time hidden"],
    ) -> None:
        """Add the switches of the embeddings. `gradients` are at `state`, the input of the first block."""
        for products, weight in self._outside_switches(self.model.lm.embedding_and_head[0]):
            change = self.model.lm.embed(tokens, weight)[0] - state
            products += (gradients * change).sum(-1).float().flatten(1)

    def finish(self) -> None:
        """Complete the units outside of the blocks."""
        for index in list(self._products):
            self._complete(index)

    def _complete(self, index: int) -> None:
        products, rows = self._products.pop(index), slice(*self._first_row[index : index + 2])
        self.first[rows] = products[:, 0].mean(1)
        self.second[rows] = products[:, 1:].square().mean((1, 2)) / 2

    def _blocks_of(self, index: int) -> Sequence[int]:
        return self.model.space.units[index].blocks or (OUTSIDE,)

    def _outside_switches(self, name: str) -> Iterator[tuple[Tensor, Tensor]]:
        for index, unit in enumerate(self.model.space.units):
            if name in unit.layers:
                yield from self._switches(index, OUTSIDE, name)

    def _switches(self, index: int, block: int, name: str) -> Iterator[tuple[Tensor, Tensor]]:
        """The products (gradients, tokens) of every switch of a unit, and the weight that the layer `name` gets."""
        levels = range(len(self.model.space.units[index].levels))
        if index not in self._products:
            self._products[index] = torch.zeros(len(levels), *self._shape, device=self.model.lm.device)
        for level in levels:
            if level != self.profile[index]:
                yield self._products[index][level], self.model.layer_weight(block, name, level)


def _add_layer(products: Float[Tensor, "gradients tokens"], layer: LayerGradients, weight: Tensor) -> None:
    change = layer.inputs @ (weight - layer.weight).T
    of_layer = (layer.gradients * change).sum(-1).float().flatten(1)  # (gradients, tokens of the layer)
    if layer.positions is None:
        products += of_layer
    else:
        products.index_add_(1, layer.positions, of_layer)
