"""The contract of a compressor: levels of a layer, and the compressed weights of a group of layers."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor

from evopress.space.budget import Metric
from evopress.space.shapes import LayerShape
from evopress.space.units import Level
from evopress.weights.base import CompressedWeight


@dataclass(frozen=True)
class LayerGroup:
    """Layers of one block that read the same input, such as q, k and v.

    `weights` are float32, (rows_i, cols). `hessian` is 2/n Σ x xᵀ over the calibration tokens, float32, (cols, cols);
    it is given if and only if the compressor's `needs_hessian` is set.
    """

    names: tuple[str, ...]
    weights: tuple[Tensor, ...]
    hessian: Tensor | None = None

    @property
    def shapes(self) -> tuple[LayerShape, ...]:
        return tuple(
            LayerShape(name, weight.shape[0], weight.shape[1])
            for name, weight in zip(self.names, self.weights, strict=True)
        )


@dataclass(frozen=True)
class CompressedGroup:
    """What a compressor returns for a group.

    `levels[i][l]` is layer i at level l. `errors[i][l]` is tr(ΔW H ΔWᵀ) / tr(W H Wᵀ), the share of the output's energy
    that is lost (‖ΔW‖²/‖W‖² without a Hessian). `notes` tell in words what went other than planned, such as a higher
    damping; empty when all was well.
    """

    levels: list[list[CompressedWeight]]
    errors: list[list[float]]
    notes: tuple[str, ...] = ()


class Compressor(ABC):
    """Makes the levels of layers that share one input. Pure mathematics: it sees no model, file, rank or hook.

    Called in this order: `levels` for every layer when the space is built, then `compress` once per group, block after
    block. A subclass is a frozen, keyword-only pydantic dataclass, so that a wrong setting fails when it is built.

    A worked example, the smallest useful compressor::

        @settings
        class HalfZero(Compressor):
            metric: ClassVar[Metric] = "sparsity"
            needs_hessian: ClassVar[bool] = False

            @property
            def span(self): return (0.0, 0.5)
            @property
            def propagate_level(self): return 1
            def levels(self, layer): ...          # two levels: all weights, and half of them
            def compress(self, group): ...        # CompressedGroup([[Kept(W), SparseWeight.from_dense(masked)] for W in …], …)
    """

    metric: ClassVar[Metric]
    needs_hessian: ClassVar[bool]

    @property
    def compresses_embeddings(self) -> bool:
        """Whether embeddings and head have levels too; each of the two is then a group of its own."""
        return False

    @property
    @abstractmethod
    def span(self) -> tuple[float, float]:
        """Smallest and largest value of the metric that some profile reaches; known without a model."""

    @property
    @abstractmethod
    def propagate_level(self) -> int:
        """Index of the level whose outputs the next block is calibrated on."""

    def propagate_level_of(self, layer: LayerShape) -> int:
        """The same for one layer, where layers of other shapes have other levels."""
        return self.propagate_level

    def for_hidden_size(self, hidden_size: int) -> Self:
        """The same compressor with what it derives from the model's width filled in; called first, before `levels`."""
        return self

    @abstractmethod
    def levels(self, layer: LayerShape) -> list[Level]:
        """Levels of a layer, least compressed first. Raises ValueError with the key for a layer that does not fit."""

    @abstractmethod
    def compress(self, group: LayerGroup) -> CompressedGroup:
        """All levels of all layers of the group, solved together, in the order of `levels`."""
