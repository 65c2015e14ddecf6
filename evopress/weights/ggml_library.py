"""Rounds weights to the K types with the ggml library, which comes with llama-cpp-python.

The library searches for the best grids. A column's squared errors are weighted by the power of its inputs in the
calibration text (the diagonal of the Hessian).

Source: ggml-quants.c of llama.cpp, `ggml_quantize_chunk` with an importance matrix.
"""

import ctypes
import importlib.util
import os
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from evopress.weights.k_types import K_TYPES, SUPERBLOCK
from evopress.weights.kquants import KWeight

NUMBERS = {"Q6_K": 14, "Q5_K": 13, "Q4_K": 12, "Q3_K": 11, "Q2_K": 10}
"""The number that the library gives each type."""


def library_path() -> Path | None:
    """The ggml library in the folder LLAMA_CPP_LIB_PATH or in the package llama-cpp-python; None if there is none."""
    folders = [Path(os.environ["LLAMA_CPP_LIB_PATH"])] if "LLAMA_CPP_LIB_PATH" in os.environ else []
    package = importlib.util.find_spec("llama_cpp")
    folders += [Path(place) / "lib" for place in (package.submodule_search_locations or ())] if package else []
    names = ("libggml-base.so", "libggml-base.dylib", "ggml-base.dll")
    return next((folder / name for folder in folders for name in names if (folder / name).is_file()), None)


def missing_requirement() -> str | None:
    """What has to be installed before weights can be rounded to K types; None if nothing is missing."""
    return None if library_path() else "the ggml library: pip install llama-cpp-python"


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
    num_bytes = K_TYPES[type_name].num_bytes
    rows, cols = weight.shape
    source, powers = weight.float().cpu().contiguous(), importance.float().cpu().contiguous()
    data = torch.empty(rows, cols // SUPERBLOCK * num_bytes, dtype=torch.uint8)
    floats = ctypes.POINTER(ctypes.c_float)
    written = _library(path).ggml_quantize_chunk(
        NUMBERS[type_name],
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
