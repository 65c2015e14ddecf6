"""Checkpoints of GPTQ and AWQ tools (AutoGPTQ, GPTQModel, AutoAWQ, AutoRound): `qweight`, `qzeros`, `scales`.

GPTQ packs the codes of an output along the inputs, and the zero points of a group along the outputs. The zero points in
the file are smaller by one, except in the checkpoint format gptq_v2. AWQ packs both along the outputs, in words of
eight codes, which belong to outputs 0, 2, 4, 6, 1, 3, 5 and 7, from the lowest bits on.

Source: `auto_gptq/nn_modules/qlinear`, `awq/utils/packing_utils.py`.
"""

from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from evopress.imports.base import Source, StoredLayer
from evopress.imports.safetensors_files import SafetensorsFiles
from evopress.weights.base import CompressedWeight
from evopress.weights.integer import QuantizedWeight, quantized_bytes
from evopress.weights.packing import num_words, unpack

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


class QweightFolder(Source):
    """What both layouts have in common. `plus_one`: the stored zero points are smaller by one."""

    def __init__(self, path: Path, settings: Mapping[str, Any], *, plus_one: bool = False):
        super().__init__(path)
        self.tensors = SafetensorsFiles(path)
        self.bits = int(settings["bits"])
        self.symmetric = bool(settings.get("sym", False))
        self.plus_one = plus_one
        self.learns_over_blocks = "auto-round" in str(settings.get("quant_method")) or "autoround_version" in settings

    @property
    def files(self) -> list[Path]:
        return [self.path / "config.json", *self.tensors.paths]

    @property
    def kinds(self) -> Collection[type[CompressedWeight]]:
        return (QuantizedWeight,)

    @property
    def integers(self) -> Collection[tuple[int, bool]]:
        return ((self.bits, self.symmetric),)

    @cached_property
    def scale_types(self) -> Collection[torch.dtype]:
        return self.tensors.scale_types(".scales")

    def compresses(self, layer: str) -> bool:
        return f"{layer}.qweight" in self.tensors

    def stored(self, layer: str, shape: tuple[int, int]) -> StoredLayer | None:
        if not self.compresses(layer):
            return None
        rows, cols = shape
        groups, scale_dtype = self._checked_header(layer, shape)
        assert scale_dtype is not None
        size = quantized_bytes(
            rows,
            cols,
            bits=self.bits,
            group_size=cols // groups,
            symmetric=self.symmetric,
            scale_bytes=scale_dtype.itemsize,
        )
        return StoredLayer(QuantizedWeight, size)

    def _checked_header(self, layer: str, shape: tuple[int, int]) -> tuple[int, torch.dtype | None]:
        """The number of groups and the type of the scales. Raises ValueError if shapes do not fit the model."""
        rows, cols = shape
        for part in ("qzeros", "scales"):
            if f"{layer}.{part}" not in self.tensors:
                raise self.error(f"{layer}.{part}", "is missing")
        scales, dtype = self.tensors.header(f"{layer}.scales")
        if len(scales) != 2 or scales[1] != rows or not scales[0] or cols % scales[0]:
            raise self.error(f"{layer}.scales", f"has the shape {scales}, which does not fit {rows} × {cols} weights")
        if dtype not in (torch.float16, torch.bfloat16, torch.float32):
            raise self.error(f"{layer}.scales", "is not of a floating-point type")
        expected = {"qweight": self.packed_shape(rows, cols), "qzeros": [scales[0], num_words(rows, self.bits)]}
        for part, wanted in expected.items():
            found, found_dtype = self.tensors.header(f"{layer}.{part}")
            if found != wanted or found_dtype != torch.int32:
                raise self.error(
                    f"{layer}.{part}",
                    f"has the shape {found}, but {rows} × {cols} weights of {self.bits} bits have {wanted} words",
                )
        return scales[0], dtype

    def packed_shape(self, rows: int, cols: int) -> list[int]:
        raise NotImplementedError

    def unpacked(self, qweight: Tensor, qzeros: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """uint8 codes (rows, cols) and stored zero points (groups, rows)."""
        raise NotImplementedError

    def read(self, layer: str, shape: tuple[int, int]) -> CompressedWeight:
        groups, _ = self._checked_header(layer, shape)
        self._check_order(layer, shape[1], groups)
        qweight, qzeros, scales = (self.tensors.read(f"{layer}.{part}") for part in ("qweight", "qzeros", "scales"))
        if not bool(scales.isfinite().all()):
            raise self.error(f"{layer}.scales", "is not finite")
        codes, zeros = self.unpacked(qweight, qzeros, shape)
        zeros = ((zeros.int() + int(self.plus_one)) % 2**self.bits).to(torch.uint8)
        if self.symmetric and bool((zeros != 2 ** (self.bits - 1)).any()):
            raise self.error(f"{layer}.qzeros", "has zero points, although the configuration says that it has none")
        stored_zeros = None if self.symmetric else zeros.t().contiguous()
        return QuantizedWeight.from_codes(codes, scales.t().contiguous(), zeros=stored_zeros, bits=self.bits)

    def _check_order(self, layer: str, cols: int, groups: int) -> None:
        name = f"{layer}.g_idx"
        if name in self.tensors and not torch.equal(
            self.tensors.read(name).long(), torch.arange(cols) // (cols // groups)
        ):
            raise self.error(
                name,
                "orders columns by groups (desc_act), which cannot be imported: use a checkpoint without desc_act",
            )

    def plain(self, name: str) -> Tensor | None:
        return self.tensors.read(name) if name in self.tensors else None


class GPTQFolder(QweightFolder):
    form: ClassVar[str] = "GPTQ"

    def packed_shape(self, rows: int, cols: int) -> list[int]:
        return [num_words(cols, self.bits), rows]

    def unpacked(self, qweight: Tensor, qzeros: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
        rows, cols = shape
        codes = unpack(qweight.t().contiguous(), self.bits, cols=cols)
        return codes, unpack(qzeros.contiguous(), self.bits, cols=rows)


class AWQFolder(QweightFolder):
    form: ClassVar[str] = "AWQ"

    def packed_shape(self, rows: int, cols: int) -> list[int]:
        return [cols, num_words(rows, self.bits)]

    def unpacked(self, qweight: Tensor, qzeros: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
        rows = shape[0]
        codes, zeros = (_in_order(unpack(part.contiguous(), self.bits, cols=rows)) for part in (qweight, qzeros))
        return codes.t().contiguous(), zeros


def _in_order(codes: Tensor) -> Tensor:
    """Codes (…, outputs) in the order of the outputs, from the order in AWQ's words."""
    restored = torch.empty_like(codes).unflatten(1, (-1, len(AWQ_ORDER)))
    restored[..., list(AWQ_ORDER)] = codes.unflatten(1, (-1, len(AWQ_ORDER)))
    return restored.flatten(1)
