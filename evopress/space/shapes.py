"""Shapes of layers and blocks. The levels of a unit depend on nothing else of the model."""

from dataclasses import dataclass

from evopress.models.structure import ModelStructure


@dataclass(frozen=True)
class LayerShape:
    """Full module name, output features and input features of a linear layer."""

    name: str
    rows: int
    cols: int

    @property
    def num_weights(self) -> int:
        return self.rows * self.cols


@dataclass(frozen=True)
class BlockShape:
    """Numbers of weights in the attention and in the MLP of a block. The names of its layers start with `name`."""

    name: str
    attention: int
    mlp: int


def layer_shape(lm: ModelStructure, name: str) -> LayerShape:
    """The shape of a layer, given its full module name."""
    rows, cols = lm.model.get_submodule(name).get_parameter("weight").shape
    return LayerShape(name, rows, cols)


def block_shapes(lm: ModelStructure) -> list[BlockShape]:
    """The shape of every block of a model."""

    def num_weights(block: int, subblock: str) -> int:
        return sum(lm.linear(block, local).weight.numel() for local in lm.subblock_layers(block, subblock))

    return [
        BlockShape(name, attention=num_weights(block, "attention"), mlp=num_weights(block, "mlp"))
        for block, name in enumerate(lm.block_names)
    ]
