"""Weights in the K types of ggml, in exactly the bytes that a GGUF file holds."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from evopress.weights.base import FloatPart
from evopress.weights.ggml_rows import GgmlRows
from evopress.weights.half_bytes import bytes_to_halves, half, halves_to_bytes
from evopress.weights.k_types import K_TYPES, SUPERBLOCK, KType


@dataclass(frozen=True)
class KWeight(GgmlRows):
    """Rows of a K type, Q2_K to Q6_K, with superblocks of 256 weights."""

    @classmethod
    def from_codes(
        cls, codes: Tensor, scales: Tensor, *, minima: Tensor, d: Tensor, dmin: Tensor, type_name: str
    ) -> "KWeight":
        """From codes (rows, cols), scales and minima (rows, sub-blocks), all of any integer type, and d and dmin.

        d and dmin are (rows, superblocks). Types without minima ignore `minima` and `dmin`.
        """
        kind = K_TYPES[type_name]
        stored = (codes.int() - kind.low).to(torch.uint8).unflatten(1, (-1, SUPERBLOCK))
        numbers = [(scales.int() - kind.scale_low).to(torch.uint8), minima.to(torch.uint8)][: 1 + kind.has_minima]
        parts = {name: plane.pack(stored) for name, plane in kind.planes.items()} | {
            "scales": kind.write_scales(tuple(part.unflatten(1, (-1, kind.num_sub_blocks)) for part in numbers)),
            "d": halves_to_bytes(d),
            "dmin": halves_to_bytes(dmin),
        }
        return cls(torch.cat([parts[name] for name in kind.fields], -1).flatten(1), type_name)

    @property
    def kind(self) -> KType:
        return K_TYPES[self.type_name]

    def codes(self) -> Tensor:
        """int8 (rows, cols)."""
        parts = self._parts()
        stored = [plane.unpack(parts[name]) for name, plane in self.kind.planes.items()]
        codes = stored[0] if len(stored) == 1 else stored[0].bitwise_or_(stored[1])
        return (codes.view(torch.int8) + self.kind.low if self.kind.low else codes.view(torch.int8)).flatten(1)

    def scales(self) -> tuple[Tensor, Tensor]:
        """The integer scales and minima, int16 (rows, superblocks, sub-blocks). Minima of types without them are 0."""
        numbers = self.kind.read_scales(self._parts()["scales"])
        scales = numbers[0].short() + self.kind.scale_low
        return scales, numbers[1].short() if self.kind.has_minima else torch.zeros_like(scales)

    def factors(self) -> tuple[Tensor, Tensor]:
        """d and dmin, float32 (rows, superblocks). dmin of types without minima is 0."""
        parts = self._parts()
        d = bytes_to_halves(parts["d"])
        return d, bytes_to_halves(parts["dmin"]) if self.kind.has_minima else torch.zeros_like(d)

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        scale, offset = self._grids(*self.factors())
        weight = self._steps(torch.float32)
        weight *= scale
        if self.kind.has_minima:
            weight -= offset
        return weight.flatten(1).to(dtype)

    def float_parts(self) -> dict[str, FloatPart]:
        """The factors d, and dmin in types with minima. One unit of either changes scales or minima by themselves."""
        d, dmin = self.factors()
        return {"d": FloatPart(d, d), **({"dmin": FloatPart(dmin, dmin)} if self.kind.has_minima else {})}

    def dense_with(self, values: Mapping[str, Tensor]) -> Tensor:
        d = values["d"]
        scale, offset = self._grids(d, values.get("dmin", d))
        weight = self._steps(d.dtype) * scale
        return (weight - offset if self.kind.has_minima else weight).flatten(1)

    def _steps(self, dtype: torch.dtype) -> Tensor:
        """The codes, (rows, superblocks, sub-blocks, weights)."""
        return self.codes().unflatten(1, (-1, self.kind.num_sub_blocks, self.kind.sub_block)).to(dtype)

    def _grids(self, d: Tensor, dmin: Tensor) -> tuple[Tensor, Tensor]:
        """The steps and the minima of the sub-blocks as weights, (rows, superblocks, sub-blocks, 1)."""
        scales, minima = self.scales()
        return (d.unsqueeze(-1) * scales).unsqueeze(-1), (dmin.unsqueeze(-1) * minima).unsqueeze(-1)

    def with_float_parts(self, values: Mapping[str, Tensor]) -> "KWeight":
        scales, minima = self.scales()
        d = half(values["d"].float())
        return KWeight.from_codes(
            self.codes(),
            scales.flatten(1),
            minima=minima.flatten(1),
            d=d,
            dmin=half(values["dmin"].float()) if self.kind.has_minima else d,
            type_name=self.type_name,
        )

    def _parts(self) -> dict[str, Tensor]:
        """The bytes of each field, (rows, superblocks, bytes)."""
        parts = self.data.unflatten(1, (-1, self.kind.num_bytes)).split(list(self.kind.fields.values()), -1)
        return dict(zip(self.kind.fields, parts, strict=True))
