"""The contract of a checkpoint whose layers are imported."""

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from evopress.weights.base import CompressedWeight


@dataclass(frozen=True)
class StoredLayer:
    """What the header of a checkpoint says about a layer: its kind and its size when it is imported."""

    kind: type[CompressedWeight]
    size_bytes: int


class Source(ABC):
    """A checkpoint of a model, some of whose layers are compressed. Layers have their names in transformers.

    The header is read when a source is opened. Errors are ValueErrors that name the file and the tensor.
    """

    form: ClassVar[str]
    """What the checkpoint is, for people."""

    learns_over_blocks: bool = False
    """Whether the codes of the layers of a block were learnt together, so that they fit each other."""

    def __init__(self, path: Path):
        self.path = path

    @property
    @abstractmethod
    def files(self) -> list[Path]:
        """All files that the layers depend on."""

    @property
    @abstractmethod
    def kinds(self) -> Collection[type[CompressedWeight]]:
        """The kinds of its layers."""

    @property
    @abstractmethod
    def integers(self) -> Collection[tuple[int, bool]]:
        """Pairs of a width of its integer codes and whether they are symmetric. Empty if it has no such codes."""

    @property
    def scale_types(self) -> Collection[torch.dtype]:
        """The types of scales that engines cast to the type in which they compute."""
        return ()

    @abstractmethod
    def compresses(self, layer: str) -> bool:
        """Whether a layer is compressed."""

    @abstractmethod
    def stored(self, layer: str, shape: tuple[int, int]) -> StoredLayer | None:
        """What the header says about a layer of this shape (rows, cols). None if it is not compressed."""

    @abstractmethod
    def read(self, layer: str, shape: tuple[int, int]) -> CompressedWeight:
        """A layer for which `stored` is not None."""

    @abstractmethod
    def plain(self, name: str) -> Tensor | None:
        """A tensor that is not compressed, such as the weight of a norm; None if the checkpoint does not have it."""

    def error(self, name: str, problem: str) -> ValueError:
        """An error about a tensor."""
        return ValueError(f"compress.sources: {name} of {self.path} {problem}")
