"""Shapes of the parts of a model: what the levels of a unit are computed from."""

from dataclasses import dataclass


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
    """Numbers of weights in the attention and the MLP of one block; layer names start with `name`."""

    name: str
    attention: int
    mlp: int
