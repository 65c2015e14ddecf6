"""Multiplies the gradients at the outputs of layers with the changes that level switches make to these outputs."""

from collections.abc import Iterator, Mapping
from itertools import accumulate

import torch
from jaxtyping import Float, Int
from torch import Tensor

from evopress.evaluation.compressible_model import CompressibleModel
from evopress.evaluation.switch_gradients import HeadGradients, LayerGradients
from evopress.space.units import OUTSIDE, Profile


class SwitchProducts:
    """γᵀΔ of every switch, gradient and token, summed over the layers of a unit.

    γ is a gradient at the output of a layer, and Δ is the change of that output if the unit switches to another level.
    There is a switch for every level of every unit, in the order of the units. The product is zero for the level that
    `profile` already has.
    """

    def __init__(self, model: CompressibleModel, profile: Profile, *, num_gradients: int, num_tokens: int):
        self.model = model
        self.profile = profile
        self._first_row = [0, *accumulate(len(unit.levels) for unit in model.space.units)]
        shape = (self._first_row[-1], num_gradients, num_tokens)
        self.values = torch.zeros(shape, dtype=torch.float32, device=model.lm.device)

    def add_head(self, head: HeadGradients, first_token: int) -> None:
        """Add the switches of the head on a chunk of tokens that starts at `first_token`."""
        name = self.model.lm.embedding_and_head[-1]
        current = self.model.embedding_and_head(self.profile).head
        span = slice(first_token, first_token + len(head.inputs))
        for row, weight in self._outside_switches(name):
            assert current is not None
            change = head.inputs @ (weight - current).T
            self.values[row, :, span] += (head.logit_gradients * change).sum(-1).float()

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
            for row, weight in self._switches(index, block, name):
                self._add_layer(row, layers[name], weight)

    def add_embeddings(
        self,
        tokens: Int[Tensor, "batch time"],
        state: Float[Tensor, "batch time hidden"],
        gradients: list[Float[Tensor, "batch time hidden"]],
    ) -> None:
        """Add the switches of the embeddings. `gradients` are at `state`, the input of the first block."""
        stacked = torch.stack(gradients)
        for row, weight in self._outside_switches(self.model.lm.embedding_and_head[0]):
            change = self.model.lm.embed(tokens, weight)[0] - state
            self.values[row] += (stacked * change).sum(-1).float().flatten(1)

    def _add_layer(self, row: int, layer: LayerGradients, weight: Tensor) -> None:
        change = layer.inputs @ (weight - layer.weight).T
        products = (layer.gradients * change).sum(-1).float().flatten(1)  # (gradients, tokens of the layer)
        if layer.positions is None:
            self.values[row] += products
        else:
            self.values[row].index_add_(1, layer.positions, products)

    def _outside_switches(self, name: str) -> Iterator[tuple[int, Tensor]]:
        for index, unit in enumerate(self.model.space.units):
            if name in unit.layers:
                yield from self._switches(index, OUTSIDE, name)

    def _switches(self, index: int, block: int, name: str) -> Iterator[tuple[int, Tensor]]:
        """The row of every switch of a unit, and the weight that the layer `name` gets."""
        for level in range(len(self.model.space.units[index].levels)):
            if level != self.profile[index]:
                yield self._first_row[index] + level, self.model.layer_weight(block, name, level)
