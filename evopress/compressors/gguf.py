"""Levels that are block types of GGUF files, solved by GPTQ on exactly their grids."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from pydantic import Field, field_validator
from torch import Tensor

from evopress.compressors.base import Compressor, LayerGroup, CompressedGroup
from evopress.compressors.linalg import inverse_factor, relative_errors, scalars
from evopress.compressors.sweep import by_level, in_parts, lanes_of, sweep, undamped_errors
from evopress.runtime.config_class import config_class
from evopress.space.budget import Metric
from evopress.space.shapes import LayerShape
from evopress.space.units import Level
from evopress.weights.base import CompressedWeight
from evopress.weights.block_grids import BLOCK, TYPES, BlockGrid, BlockType, TypeName, fit_blocks
from evopress.weights.ggml import GgmlWeight, bits_per_weight, block_of, out_of_reach
from evopress.weights.kquants import K_TYPES, KTypeName, missing_requirement, round_by_ggml


@config_class
class GGUF(Compressor):
    """Quantises to the types that llama.cpp runs, so that the searched numbers are those of the file.

    `types` are the levels. Costs and values are bits per weight with scales: Q4_0 4.5, Q4_1 5, Q5_0 5.5, Q5_1 6,
    Q8_0 8.5. The K types Q2_K 2.625, Q3_K 3.4375, Q4_K 4.5, Q5_K 5.5 and Q6_K 6.5625 are levels of layers with a
    multiple of 256 inputs; they need the ggml library, which rounds them without GPTQ, see `kquants`.

    With `embeddings`, the embeddings and the head are units as well. `damp` is the damping as a share of the Hessian's
    mean diagonal. The next block is calibrated on `propagate_type`; where a layer has no such level, on its next larger
    one, else on its largest.

    Source: arXiv 2210.17323, Algorithm 1, with a block of 32 columns as the group.
    """

    metric: ClassVar[Metric] = "bits"
    needs_hessian: ClassVar[bool] = True

    types: tuple[TypeName | KTypeName, ...] = ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")
    embeddings: bool = True
    damp: float = Field(default=0.01, gt=0)
    propagate_type: TypeName | KTypeName = "Q4_0"

    @field_validator("types")
    @classmethod
    def _distinct_largest_first(cls, types: tuple[TypeName | KTypeName, ...]) -> tuple[TypeName | KTypeName, ...]:
        if not types or len(set(types)) < len(types):
            raise ValueError(f"{list(types)} must be different types: change compress.types")
        lacking = missing_requirement()
        if lacking and K_TYPES.keys() & set(types):
            raise ValueError(f"{', '.join(K_TYPES.keys() & set(types))} in compress.types needs {lacking}")
        return tuple(sorted(types, key=lambda name: -bits_per_weight(name)))

    @property
    def compresses_embeddings(self) -> bool:
        return self.embeddings

    @property
    def span(self) -> tuple[float, float]:
        return bits_per_weight(self.types[-1]), bits_per_weight(self.types[0])

    @property
    def propagate_level(self) -> int:
        return self._propagated(self.types)

    def propagate_level_of(self, layer: LayerShape) -> int:
        return self._propagated(self._types_of(layer.cols))

    def _propagated(self, types: Sequence[str]) -> int:
        wanted = bits_per_weight(self.propagate_type)
        same = [level for level, name in enumerate(types) if name == self.propagate_type]
        return (same or [level for level, name in enumerate(types) if bits_per_weight(name) >= wanted] or [0])[-1]

    def _types_of(self, cols: int) -> tuple[str, ...]:
        """The types that rows of `cols` weights can have."""
        return tuple(name for name in self.types if cols % block_of(name)[0] == 0)

    def levels(self, layer: LayerShape) -> list[Level]:
        types = self._types_of(layer.cols)
        if not types:
            widths = " or ".join(str(width) for width in sorted({block_of(name)[0] for name in self.types}))
            raise ValueError(
                f"{layer.name} has {layer.cols} inputs, and every type of compress.types needs a multiple of {widths}: "
                f"{'add Q4_0 or others that need 32, or ' if layer.cols % BLOCK == 0 else ''}use compress=gptq"
            )
        sizes = {name: layer.num_weights // block_of(name)[0] * block_of(name)[1] for name in types}
        return [
            Level(label=name, value=bits_per_weight(name), cost=8 * size, size_bytes=size)
            for name, size in sizes.items()
        ]

    def compress(self, group: LayerGroup) -> CompressedGroup:
        assert group.hessian is not None, "the group has no Hessian"
        H, names = group.hessian, ", ".join(group.names)
        factor = inverse_factor(H, damp=self.damp)
        notes = [f"{names}: {note}" for note in factor.notes]
        rows, U = torch.cat(group.weights), factor.U
        if U is None:
            notes.append(f"{names}: rounded to nearest instead")
            U = torch.eye(len(H), device=H.device)
        else:
            rows = rows.masked_fill_(factor.dead, 0)
        types = self._types_of(rows.shape[1])
        swept, others = ([name for name in types if name in kinds] for kinds in (TYPES, K_TYPES))
        solved = [_solve(rows, part, U) for part in in_parts(swept, rows)] if swept else []
        num_rows = [shape.rows for shape in group.shapes]
        by_type = [data.split(num_rows) for part, _ in solved for data in part]
        found: list[list[CompressedWeight]] = [
            [
                *(GgmlWeight(data[index].clone(), name) for name, data in zip(swept, by_type, strict=True)),
                *(round_by_ggml(weight, name, importance=H.diagonal()) for name in others),
            ]
            for index, weight in enumerate(group.weights)
        ]
        layers = [
            ([level.dense for level in of_layer], weight) for of_layer, weight in zip(found, group.weights, strict=True)
        ]
        told = len(swept) if factor.U is not None else 0  # levels whose losses the sweep tells
        errors = relative_errors([(levels[told:], weight) for levels, weight in layers], H)
        if told:
            losses = torch.cat([loss for _, loss in solved]).split(num_rows, 1)
            known = [(lv[:told], weight, loss.sum(1)) for (lv, weight), loss in zip(layers, losses, strict=True)]
            by_sweep = undamped_errors(known, H=H, damp=factor.damp)
            errors = [[*first, *rest] for first, rest in zip(by_sweep, errors, strict=True)]
        order = [[*swept, *others].index(name) for name in types]
        levels = [[of_layer[place] for place in order] for of_layer in found]
        errors = [[of_layer[place] for place in order] for of_layer in errors]
        return CompressedGroup(levels, errors, (*notes, *_clipped(group, levels)))


def _clipped(group: LayerGroup, levels: list[list[CompressedWeight]]) -> Iterator[str]:
    """A note on each layer with weights that no block type reaches, whatever the level."""
    stored = [[level for level in of_layer if isinstance(level, GgmlWeight)] for of_layer in levels]
    pairs = zip(group.weights, stored, strict=True)
    counts = iter(scalars(*(out_of_reach(weight, level) for weight, of_layer in pairs for level in of_layer)))
    for name, of_layer in zip(group.names, stored, strict=True):
        beyond = [(level.type_name, count) for level, count in zip(of_layer, counts, strict=False) if count]
        if beyond:
            blocks = ", ".join(f"{count:.0f} blocks of {kind}" for kind, count in beyond)
            yield (
                f"{name}: {blocks} are beyond the reach of their float16 scales and clipped; "
                "use compress=gptq compress.scale_dtype=float32, or export.formats=[hf]"
            )


def _solve(rows: Tensor, names: Sequence[str], U: Tensor) -> tuple[list[Tensor], Tensor]:
    """Rows (rows, cols) at several types. Returns the bytes of each, (rows, bytes), and Σ E², (types, rows)."""
    W = lanes_of(rows, len(names))
    rounder = _Rounder([TYPES[name] for name in names], torch.empty_like(W, dtype=torch.int8))
    loss = sweep(W, U, rounder, block_size=BLOCK).square_().sum(0)
    parts = (
        rounder.codes,
        torch.stack([grid.scale for grid in rounder.grids]),
        torch.stack([grid.offset for grid in rounder.grids]),
    )
    by_type = zip(names, *(by_level(part, len(names)) for part in parts), strict=True)
    data = [
        GgmlWeight.from_codes(codes, scales, offsets=offsets, type_name=name).data
        for name, codes, scales, offsets in by_type
    ]
    return data, by_level(loss, len(names))


@dataclass
class _Rounder:
    """Rounds a column to the grid of its block, fitted when the block is reached."""

    types: Sequence[BlockType]
    codes: Tensor
    grids: list[BlockGrid] = field(default_factory=list)

    def start_block(self, start: int, W: Tensor) -> None:
        self.grids.append(fit_blocks(W, self.types))

    def settle(self, column: int, w: Tensor) -> None:
        codes = self.grids[column // BLOCK].encode(w)
        self.codes[column] = codes
        w.sub_(self.grids[column // BLOCK].decode(codes))

    def end_block(self) -> None:
        """Nothing is left to do."""
