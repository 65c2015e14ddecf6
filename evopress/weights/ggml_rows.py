"""What all weights in ggml's types have in common: the bytes of a GGUF file, row by row."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor

from evopress.weights.base import CompressedWeight, GgufRows, Spec


class BlockLayout(Protocol):
    """What the size of a weight depends on."""

    @property
    def num_bytes(self) -> int:
        """Bytes of a block."""

    @property
    def num_weights(self) -> int:
        """Weights of a block."""


@dataclass(frozen=True)
class GgmlRows(CompressedWeight):
    """Rows of the type `type_name` in the bytes of a GGUF file: `data` uint8 (rows, blocks · bytes of each)."""

    is_ggml_type: ClassVar[bool] = True

    data: Tensor
    type_name: str

    @property
    @abstractmethod
    def kind(self) -> BlockLayout:
        """The type."""

    @property
    def shape(self) -> tuple[int, int]:
        return self.data.shape[0], self.data.shape[1] // self.kind.num_bytes * self.kind.num_weights

    @property
    def size_bytes(self) -> int:
        return self.data.nbytes

    def gguf_rows(self) -> GgufRows:
        return GgufRows(self.data, self.type_name)

    def tensors(self) -> dict[str, Tensor]:
        return {"data": self.data}

    def spec(self) -> Spec:
        return {"kind": "ggml", "type": self.type_name}
