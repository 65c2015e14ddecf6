"""Levels that are GGUF block types, quantised by GPTQ on exactly the grids of these types."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from evopress.compressors.base import CompressedGroup, Compressor, LayerGroup
from evopress.compressors.block_sweep import BlockSweep, clipping_notes
from evopress.compressors.ggml_library import library_path, round_by_ggml
from evopress.compressors.inverse_factor import column_order, factor_inverse
from evopress.compressors.output_errors import dense_levels, relative_errors, undamped_errors
from evopress.imports import power_of
from evopress.runtime.checksums import sha256_of
from evopress.runtime.config_class import UserPath, config_class
from evopress.space.budget import Metric
from evopress.space.shapes import LayerShape
from evopress.space.units import Level
from evopress.weights.base import CompressedWeight
from evopress.weights.block_grids import BLOCK, TYPES, TypeName
from evopress.weights.ggml import GgmlWeight, bits_per_weight, block_of
from evopress.weights.i_types import I_TYPES, ITypeName
from evopress.weights.iquants import IWeight
from evopress.weights.k_types import K_TYPES, KTypeName
from evopress.weights.kquants import KWeight

Types = tuple[TypeName | KTypeName | ITypeName, ...]

DEFAULT_TYPES: Types = ("Q8_0", "Q6_K", "Q5_1", "Q5_K", "Q5_0", "Q4_1", "Q4_K", "Q4_0", "Q3_K", "Q2_K")


@config_class
class GGUF(Compressor):
    """Quantises to block types that llama.cpp runs, so that the exported file holds the very weights of the search.

    `types` are the levels. Costs and values count bits with scales. Per weight these are, for Q4_0 4.5, Q4_1 5,
    Q5_0 5.5, Q5_1 6 and Q8_0 8.5. The K types (Q2_K 2.625, Q3_K 3.4375, Q4_K 4.5, Q5_K 5.5 and Q6_K 6.5625) are levels
    of layers whose number of inputs is a multiple of 256. Such a layer has no other types with codes of as many bits:
    with Q4_K, neither Q4_0, which has the same size and loses more, nor Q4_1, which is larger and gains almost nothing.

    `range`, `act_order` and `weigh_tokens` work as in GPTQ, but with `range=minmax` the types that end in _0 or _1 have
    the grids of the reference quantisers. The grids of K types are always searched before the sweep, because the scales
    of a superblock depend on each other.

    The I types (IQ4_XS 4.25, IQ3_S 3.4375, IQ3_XXS 3.0625, IQ2_S 2.5625, IQ2_XS 2.3125, IQ2_XXS 2.0625; IQ4_NL 4.5, for
    a multiple of 32 inputs) are rounded by ggml's own library, with the power of the inputs as importance and without
    GPTQ. `ggml_library` is the library, or a folder that contains it; None finds llama-cpp-python in this environment.

    `imatrix` is a file of `llama-imatrix`. The power of the inputs, which weighs errors in the search of grids and in
    I types, then comes from this file. Layers that are not in it, such as embeddings, use the power of the calibration
    text. GPTQ always uses the calibration text.

    With `embeddings`, the embeddings and the head are units as well. `damp` is the damping as a share of the Hessian's
    mean diagonal. The next block is calibrated on the outputs of `propagate_type`. A layer without this level uses the
    next larger one, or its largest if there is none.

    Source: arXiv 2210.17323, Algorithm 1, with a block of 32 columns as the group.
    """

    metric: ClassVar[Metric] = "bits"
    levels_key: ClassVar[str] = "compress.types"
    needs_hessian: ClassVar[bool] = True

    types: Types = DEFAULT_TYPES
    embeddings: bool = True
    range: Literal["minmax", "hessian"] = "hessian"
    act_order: bool = True
    weigh_tokens: bool = True
    damp: float = Field(default=0.01, gt=0)
    propagate_type: TypeName | KTypeName = "Q4_0"
    ggml_library: UserPath | None = None
    imatrix: UserPath | None = None

    @field_validator("types")
    @classmethod
    def _distinct_largest_first(cls, types: Types) -> Types:
        if not types or len(set(types)) < len(types):
            raise ValueError(f"{list(types)} must be different types: change compress.types")
        return tuple(sorted(types, key=lambda name: -bits_per_weight(name)))

    @property
    def needs_token_weights(self) -> bool:
        return self.weigh_tokens

    @property
    def compresses_embeddings(self) -> bool:
        return self.embeddings

    @property
    def weight_kinds(self) -> frozenset[type[CompressedWeight]]:
        return frozenset({GgmlWeight, KWeight, IWeight})

    @property
    def span(self) -> tuple[float, float]:
        return bits_per_weight(self.types[-1]), bits_per_weight(self.types[0])

    @property
    def propagate_level(self) -> int:
        return self._level_to_propagate(self.types)

    def propagate_level_of(self, layer: LayerShape) -> int:
        return self._level_to_propagate(self._types_of(layer.cols))

    def _level_to_propagate(self, types: Sequence[str]) -> int:
        if self.propagate_type in types:
            return types.index(self.propagate_type)
        wanted = bits_per_weight(self.propagate_type)
        return max((level for level, name in enumerate(types) if bits_per_weight(name) >= wanted), default=0)

    def _types_of(self, cols: int) -> tuple[str, ...]:
        """The types that a layer with `cols` inputs has."""
        fitting = [name for name in self.types if cols % block_of(name)[0] == 0]
        bits_of_k_types = {K_TYPES[name].bits for name in fitting if name in K_TYPES}
        return tuple(name for name in fitting if name not in TYPES or TYPES[name].bits not in bits_of_k_types)

    def levels(self, layer: LayerShape) -> list[Level]:
        types = self._types_of(layer.cols)
        if any(name in I_TYPES for name in types):
            library_path(self.ggml_library)
        if self.imatrix:
            power_of(self.imatrix, layer.name, layer.cols)
        if not types:
            widths = " or ".join(str(width) for width in sorted({block_of(name)[0] for name in self.types}))
            raise ValueError(
                f"{layer.name} has {layer.cols} inputs, but every type in compress.types needs a multiple of {widths}: "
                f"{'add Q4_0 or others that need 32, or ' if layer.cols % BLOCK == 0 else ''}use compress=gptq"
            )
        sizes = {name: layer.num_weights // block_of(name)[0] * block_of(name)[1] for name in types}
        return [
            Level(label=name, value=bits_per_weight(name), cost=8 * size, size_bytes=size)
            for name, size in sizes.items()
        ]

    def compress(self, group: LayerGroup) -> CompressedGroup:
        assert group.hessian is not None, "the group has no Hessian"
        H, rows = group.hessian, torch.cat(group.weights)
        order = column_order(H, by_power=self.act_order)
        factor = factor_inverse(H, damp=self.damp, order=order)
        notes = [group.note(note) for note in factor.notes]
        if factor.U is None:
            notes.append(group.note("rounded to nearest instead"))
        rows = rows[:, order]
        if factor.U is not None:
            rows.masked_fill_(factor.dead, 0)
        sweeper = BlockSweep(
            torch.eye(len(H), device=H.device) if factor.U is None else factor.U,
            order=order,
            power=self._power(group),
            search=self.range != "minmax",
            static_grids=self.act_order,
        )
        names = self._types_of(len(H))
        swept_names = [name for name in names if name not in I_TYPES]
        by_name: dict[str, list[CompressedWeight]] = {
            name: self._rounded_by_ggml(group, name) for name in names if name in I_TYPES
        }
        losses = None
        if swept_names:
            swept, losses = sweeper.to_types(rows, swept_names, num_rows=group.num_rows)
            by_name |= dict(zip(swept_names, map(list, zip(*swept, strict=True)), strict=True))
        levels = [list(of_layer) for of_layer in zip(*(by_name[name] for name in names), strict=True)]
        if factor.U is None or losses is None or len(swept_names) < len(names):
            errors = relative_errors(dense_levels(levels), group.weights, H=H)
        else:
            errors = undamped_errors(
                dense_levels(levels), group.weights, losses=losses, H=H, absolute_damping=factor.absolute_damping
            )
        return CompressedGroup(levels, errors, (*notes, *clipping_notes(group, levels)))

    def _rounded_by_ggml(self, group: LayerGroup, name: str) -> list[CompressedWeight]:
        """The layers of the group in an I type."""
        library, power = library_path(self.ggml_library), self._power(group)
        return [round_by_ggml(weight, name, power=power, library=library) for weight in group.weights]

    def _power(self, group: LayerGroup) -> Tensor:
        """The mean square of every input, up to a common factor, (cols,)."""
        assert group.hessian is not None
        power = group.hessian.diagonal()
        known = power_of(self.imatrix, group.names[0], len(power)) if self.imatrix else None
        return power if known is None else known.to(power)

    @property
    def inputs_identity(self) -> Mapping[str, str]:
        return {"imatrix": sha256_of(Path(self.imatrix))} if self.imatrix else {}
