"""Levels from checkpoints that other tools made of the same model."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from evopress.compressors.base import CompressedGroup, Compressor, LayerGroup
from evopress.compressors.output_errors import dense_levels, relative_errors
from evopress.compressors.rtn import RTN
from evopress.imports import Source, StoredLayer, open_sources
from evopress.runtime.checksums import sha256_of
from evopress.runtime.config_class import UserPath, config_class
from evopress.space.budget import Metric
from evopress.space.settings import SpaceSettings
from evopress.space.shapes import LayerShape
from evopress.space.units import Level
from evopress.weights.base import CompressedWeight

EMBEDDINGS = "model.embed_tokens"
"""The name of the embeddings in the families whose files can be imported."""

DENSE_BITS = 16.0

MOST_ERROR = 1.0
"""A level that loses a larger share of a weight's energy is worse than zeros, and is probably from another model."""

MOST_CHANGE = 0.05
"""Norms and biases of a source may differ from those of the model by this much, relative to them."""


@config_class
class Imported(Compressor):
    """Takes the levels from the checkpoints in `sources`: GGUF files, or folders of compressed-tensors, GPTQ or AWQ.

    Every source is a level, with its name as the label. The levels of a layer are ordered by their bytes. If a layer is
    not compressed in a source, it does not have this level. Costs and values count bits with scales. Embeddings and
    head are units if some source has compressed them. No calibration text is used.

    It is the only compressor that reads files. The sources are opened when they are first needed.
    """

    metric: ClassVar[Metric] = "bits"
    levels_key: ClassVar[str] = "compress.sources"
    needs_hessian: ClassVar[bool] = False

    sources: tuple[UserPath, ...] = Field(min_length=1)

    @cached_property
    def _opened(self) -> Mapping[str, Source]:
        return open_sources(self.sources)

    @property
    def span(self) -> tuple[float, float]:
        return 0.0, DENSE_BITS

    @property
    def propagate_level(self) -> int:
        """Has no effect, because there is no calibration."""
        return 0

    @property
    def compresses_embeddings(self) -> bool:
        return any(source.compresses(EMBEDDINGS) for source in self._opened.values())

    @property
    def weight_kinds(self) -> frozenset[type[CompressedWeight]]:
        return frozenset(kind for source in self._opened.values() for kind in source.kinds)

    @property
    def code_bits(self) -> tuple[int, ...]:
        return tuple(sorted({bits for source in self._opened.values() for bits, _ in source.integers}))

    @property
    def scale_type(self) -> torch.dtype | None:
        found = {dtype for source in self._opened.values() for dtype in source.scale_types}
        return found.pop() if len(found) == 1 else None

    @property
    def zero_point_bits(self) -> tuple[int, ...]:
        found = {bits for source in self._opened.values() for bits, symmetric in source.integers if not symmetric}
        return tuple(sorted(found))

    def advice(self, space: SpaceSettings) -> list[str]:
        return [
            f"{source.path}: the rounding of all layers of a block was learnt together, so they do not fit layers from "
            "other sources: set space.tie=block, so that all layers of a block come from one source"
            for source in self._opened.values()
            if source.learns_over_blocks and space.tie != "block"
        ]

    def check_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        for source in self._opened.values():
            for name, tensor in tensors.items():
                stored = source.plain(name) if tensor.ndim == 1 else None
                if stored is None:
                    continue
                if stored.shape != tensor.shape:
                    raise source.error(
                        name, f"has the shape {list(stored.shape)}, but in the model it has {list(tensor.shape)}"
                    )
                change = float((stored.float() - tensor.detach().cpu().float()).norm())
                if change > MOST_CHANGE * float(tensor.detach().float().norm()):
                    raise source.error(
                        name,
                        "differs from that of the model. The checkpoint is of another model, or its tool has moved "
                        "factors between layers, as AWQ does. Remove it from compress.sources, or set model.path to "
                        "the model with these factors",
                    )

    def _stored(self, layer: LayerShape) -> dict[str, StoredLayer]:
        """The sources that have compressed a layer, by name, in the order of its levels."""
        shape = (layer.rows, layer.cols)
        known = {name: source.stored(layer.name, shape) for name, source in self._opened.items()}
        compressed = {name: stored for name, stored in known.items() if stored is not None}
        if not compressed:
            raise ValueError(
                f"{layer.name} is compressed in none of compress.sources: add a checkpoint in which it is compressed"
            )
        return dict(sorted(compressed.items(), key=lambda item: -item[1].size_bytes))

    def levels(self, layer: LayerShape) -> list[Level]:
        return [
            Level(
                label=name,
                value=8 * stored.size_bytes / layer.num_weights,
                cost=8 * stored.size_bytes,
                size_bytes=stored.size_bytes,
            )
            for name, stored in self._stored(layer).items()
        ]

    def compress(self, group: LayerGroup) -> CompressedGroup:
        levels: list[list[CompressedWeight]] = [
            [
                self._opened[name].read(layer.name, (layer.rows, layer.cols)).to(weight.device)
                for name in self._stored(layer)
            ]
            for layer, weight in zip(group.shapes, group.weights, strict=True)
        ]
        errors = relative_errors(dense_levels(levels), group.weights, H=None)
        return CompressedGroup(levels, errors, tuple(self._notes(group, errors)))

    def compress_sample(self, group: LayerGroup) -> CompressedGroup:
        """Levels of two widths of integers, which take about as long to decode as those of the sources."""
        return RTN(bits=(8, 4)).compress(group)

    def _notes(self, group: LayerGroup, errors: Sequence[Sequence[float]]) -> Iterator[str]:
        for layer, of_levels in zip(group.shapes, errors, strict=True):
            for name, error in zip(self._stored(layer), of_levels, strict=True):
                if error > MOST_ERROR:
                    yield f"{layer.name} of {self._opened[name].path} does not approximate the weight of the model"

    @cached_property
    def inputs_identity(self) -> Mapping[str, str]:
        return {
            f"{name}/{file.name}": sha256_of(file) for name, source in self._opened.items() for file in source.files
        }
