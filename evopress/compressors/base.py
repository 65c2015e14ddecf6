"""The contract of a compressor: levels of a layer, and the compressed weights of a group of layers."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from evopress.space.budget import Metric
from evopress.space.settings import SpaceSettings
from evopress.space.shapes import LayerShape
from evopress.space.units import Level
from evopress.weights.base import CompressedWeight


@dataclass(frozen=True)
class LayerGroup:
    """Layers of one block that read the same input, such as q, k and v.

    `weights` are float32, (rows_i, cols). `hessian` is 2/n Σ w x xᵀ over the calibration tokens, float32, (cols, cols);
    it is given if and only if the compressor's `needs_hessian` is set. The weights w of the tokens have a common
    factor, and are 1 unless the compressor's `needs_token_weights` is set.
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

    @property
    def num_rows(self) -> list[int]:
        """Rows of each layer."""
        return [len(weight) for weight in self.weights]

    def note(self, text: str) -> str:
        """A note that starts with the names of the layers it is about."""
        return f"{', '.join(self.names)}: {text}"


@dataclass(frozen=True)
class CompressedGroup:
    """What a compressor returns for a group.

    `levels[i][l]` is layer i at level l. `errors[i][l]` is tr(ΔW H ΔWᵀ) / tr(W H Wᵀ), the share of the output's energy
    that is lost (‖ΔW‖²/‖W‖² without a Hessian). `notes` are sentences about anything unusual that the user should know,
    such as a raised damping.
    """

    levels: list[list[CompressedWeight]]
    errors: list[list[float]]
    notes: tuple[str, ...] = ()


class Compressor(ABC):
    """Makes the levels of layers that share one input. Pure mathematics: it sees no model, file, process or hook.

    The methods are called in this order: `for_hidden_size` once; `levels` for every layer, when the space is built;
    then `compress` once per group, block after block. A subclass is a `config_class`, so that a wrong setting fails at
    start-up.

    The smallest useful compressor looks like this::

        @config_class
        class HalfZero(Compressor):
            metric: ClassVar[Metric] = "sparsity"
            needs_hessian: ClassVar[bool] = False

            @property
            def span(self): return (0.0, 0.5)
            @property
            def propagate_level(self): return 1
            def levels(self, layer):
                ...  # two levels: all weights, and half of them
            def compress(self, group):
                ...  # CompressedGroup([[Kept(W), SparseWeight.from_dense(W, mask)] for W in group.weights], errors)
    """

    metric: ClassVar[Metric]
    """What the costs of its levels measure."""

    needs_hessian: ClassVar[bool]
    """Whether it needs calibration. If so, `compress` gets the Hessian of every group."""

    levels_key: ClassVar[str] = "compress"
    """The configuration key that says which levels there are, for advice."""

    @property
    def needs_token_weights(self) -> bool:
        """Whether tokens count in the Hessians by the gradients of the dense model, instead of all alike."""
        return False

    @property
    def needs_size_budget(self) -> bool:
        """Whether some levels of a layer have the same cost in `metric`, so that they differ only in bytes."""
        return False

    @property
    def compresses_embeddings(self) -> bool:
        """Whether embeddings and head have levels as well. Each of the two is then a group by itself."""
        return False

    @property
    def weight_kinds(self) -> frozenset[type[CompressedWeight]]:
        """The kinds of weight among its levels, for formats that hold only some. Empty if it does not say so."""
        return frozenset()

    @property
    def scale_type(self) -> torch.dtype | None:
        """The type of those scales that engines cast to the type in which they compute, if there are any."""
        return None

    @property
    def code_bits(self) -> tuple[int, ...]:
        """The widths of integer codes among its levels. Empty if it has none."""
        return ()

    @property
    def zero_point_bits(self) -> tuple[int, ...]:
        """The widths of the zero points. Empty if its levels have none."""
        return ()

    @property
    def inputs_identity(self) -> Mapping[str, str]:
        """What its levels depend on besides its settings and the model, such as hashes of files that it reads."""
        return {}

    def advice(self, space: SpaceSettings) -> list[str]:
        """Warnings about settings that work but make worse models. Each is a sentence for people."""
        return []

    def check_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise ValueError if the levels are not made for a model with these parameters, given by name."""
        return None

    @property
    @abstractmethod
    def span(self) -> tuple[float, float]:
        """Smallest and largest value of the metric that a profile can reach, as far as known without a model."""

    @property
    @abstractmethod
    def propagate_level(self) -> int:
        """Index of the level whose outputs the next block is calibrated on."""

    def propagate_level_of(self, layer: LayerShape) -> int:
        """`propagate_level` of one layer. Layers differ if their levels depend on their shapes."""
        return self.propagate_level

    def for_hidden_size(self, hidden_size: int) -> Self:
        """A copy in which every setting that depends on the width of the model is filled in."""
        return self

    @abstractmethod
    def levels(self, layer: LayerShape) -> list[Level]:
        """Levels of a layer, least compressed first.

        Raises:
            ValueError: The layer does not fit the settings. The message names the key to change.
        """

    @abstractmethod
    def compress(self, group: LayerGroup) -> CompressedGroup:
        """All levels of all layers of the group, solved together, in the order of `levels`."""

    def compress_sample(self, group: LayerGroup) -> CompressedGroup:
        """Levels of layers with random weights, for estimates of time."""
        return self.compress(group)
