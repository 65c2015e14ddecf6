"""The tensors in a folder of safetensors files. Each tensor is read when it is needed."""

from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "I8": torch.int8,
}


class SafetensorsFiles:
    """The tensors by name. Raises ValueError if a file cannot be read."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.paths = sorted(folder.glob("*.safetensors"))

    @cached_property
    def _file_of(self) -> dict[str, Path]:
        names = {}
        for path in self.paths:
            try:
                with safe_open(path, framework="pt") as file:
                    names.update(dict.fromkeys(file.keys(), path))
            except (SafetensorError, OSError) as error:
                raise ValueError(f"compress.sources: {path} cannot be read: {error}") from error
        return names

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def scale_types(self, ending: str) -> set[torch.dtype]:
        """The types of the tensors whose names end in `ending`, of those types that have 16 or 32 bits."""
        found = {self.header(name)[1] for name in self._file_of if name.endswith(ending)}
        return {dtype for dtype in found if dtype is not None and dtype.itemsize in (2, 4)}

    def header(self, name: str) -> tuple[list[int], torch.dtype | None]:
        """The shape and the type of a tensor, which is not read. The type is None if no layer has it."""
        with safe_open(self._file_of[name], framework="pt") as file:
            part = file.get_slice(name)
            return part.get_shape(), DTYPES.get(part.get_dtype())

    def num_bytes(self, name: str) -> int:
        shape, dtype = self.header(name)
        return torch.Size(shape).numel() * (dtype.itemsize if dtype else 0)

    def read(self, name: str) -> Tensor:
        with safe_open(self._file_of[name], framework="pt") as file:
            return file.get_tensor(name)
