"""The K types of ggml: superblocks of 256 weights whose scales are quantised too. The ggml library does the rounding.

The library comes with llama-cpp-python. It searches for the best grids. A column's squared errors are weighted by the
power of its inputs in the calibration text (the diagonal of the Hessian). GPTQ cannot be used: it rounds column by
column, but the scales of a superblock depend on all of its weights. Decoding needs only the package gguf.

Source: ggml-quants.c of llama.cpp, `ggml_quantize_chunk` with an importance matrix.
"""

import ctypes
import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from evopress.weights.base import CompressedWeight, Spec

SUPERBLOCK = 256

KTypeName = Literal["Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K"]

K_TYPES: Mapping[str, tuple[int, int]] = {
    "Q6_K": (14, 210),
    "Q5_K": (13, 176),
    "Q4_K": (12, 144),
    "Q3_K": (11, 110),
    "Q2_K": (10, 84),
}
"""The number that the library gives each type, and the bytes of a superblock; from the largest to the smallest."""


@dataclass(frozen=True)
class KWeight(CompressedWeight):
    """Rows of the type `type_name` in the bytes of a GGUF file: `data` uint8 (rows, superblocks · bytes of each)."""

    data: Tensor
    type_name: str

    @property
    def shape(self) -> tuple[int, int]:
        return self.data.shape[0], self.data.shape[1] // K_TYPES[self.type_name][1] * SUPERBLOCK

    @property
    def size_bytes(self) -> int:
        return self.data.nbytes

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        from gguf import GGMLQuantizationType, dequantize  # optional package

        decoded = dequantize(self.data.cpu().numpy(), GGMLQuantizationType[self.type_name])
        return torch.from_numpy(decoded).to(self.data.device, dtype)

    def tensors(self) -> dict[str, Tensor]:
        return {"data": self.data}

    def spec(self) -> Spec:
        return {"kind": "ggml", "type": self.type_name}


def library_path() -> Path | None:
    """The ggml library in the folder LLAMA_CPP_LIB_PATH or in the package llama-cpp-python; None if there is none."""
    folders = [Path(os.environ["LLAMA_CPP_LIB_PATH"])] if "LLAMA_CPP_LIB_PATH" in os.environ else []
    package = importlib.util.find_spec("llama_cpp")
    folders += [Path(place) / "lib" for place in (package.submodule_search_locations or ())] if package else []
    names = ("libggml-base.so", "libggml-base.dylib", "ggml-base.dll")
    return next((folder / name for folder in folders for name in names if (folder / name).is_file()), None)


def missing_requirement() -> str | None:
    """What has to be installed before weights can be rounded to K types; None if nothing is missing."""
    if importlib.util.find_spec("gguf") is None:
        return "the package gguf: pip install 'evopress[gguf]'"
    if library_path() is None:
        return "the ggml library: pip install llama-cpp-python"
    return None


@cache
def _library(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    floats = ctypes.POINTER(ctypes.c_float)
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        floats,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int64,
        floats,
    ]
    return library


def round_by_ggml(weight: Tensor, type_name: str, *, importance: Tensor) -> KWeight:
    """Round weight (rows, cols), float32; `importance` (cols,) has the weights of the squared errors per column.

    Raises:
        ValueError: The ggml library is not installed, or wrote fewer or more bytes than the type has.
    """
    path = library_path()
    if path is None:
        raise ValueError(f"{type_name} needs {missing_requirement()}")
    number, num_bytes = K_TYPES[type_name]
    rows, cols = weight.shape
    source, powers = weight.float().cpu().contiguous(), importance.float().cpu().contiguous()
    data = torch.empty(rows, cols // SUPERBLOCK * num_bytes, dtype=torch.uint8)
    floats = ctypes.POINTER(ctypes.c_float)
    written = _library(path).ggml_quantize_chunk(
        number,
        ctypes.cast(source.data_ptr(), floats),
        data.data_ptr(),
        0,
        rows,
        cols,
        ctypes.cast(powers.data_ptr(), floats),
    )
    if written != data.nbytes:
        raise ValueError(f"the ggml library wrote {written} bytes of {type_name}, not {data.nbytes}: {path}")
    return KWeight(data.to(weight.device), type_name)
