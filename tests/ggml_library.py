"""The quantisers of ggml, with an importance matrix, in the library of llama-cpp-python in `.engines/llama`."""

import ctypes
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from evopress.weights.k_types import K_TYPES
from evopress.weights.kquants import KWeight

ENGINE = Path(__file__).parents[1] / ".engines/llama"
NUMBERS = {"Q6_K": 14, "Q5_K": 13, "Q4_K": 12, "Q3_K": 11, "Q2_K": 10}
"""The number that the library gives each type."""


def ggml_library() -> ctypes.CDLL:
    """The library. Skips the test if it is not installed, except under `make test-engines`."""
    libraries = list(ENGINE.glob("lib/python3.*/site-packages/llama_cpp/lib/libggml-base.*"))
    if not libraries and os.environ.get("EVOPRESS_ENGINES") != "required":
        pytest.skip("the engine llama is not installed: `make test-engines` builds it")
    library = ctypes.CDLL(str(min(libraries)))
    size, pointer = ctypes.c_int64, ctypes.c_void_p
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, size, size, size, pointer]
    return library


def round_by_ggml(weight: Tensor, type_name: str, *, importance: Tensor) -> KWeight:
    """Round weight (rows, cols); `importance` (cols,) has the weights of the squared errors per column."""
    rows, cols = weight.shape
    source, powers = weight.float().contiguous(), importance.float().contiguous()
    data = torch.empty(rows, cols // 256 * K_TYPES[type_name].num_bytes, dtype=torch.uint8)
    written = ggml_library().ggml_quantize_chunk(
        NUMBERS[type_name], source.data_ptr(), data.data_ptr(), 0, rows, cols, powers.data_ptr()
    )
    assert written == data.nbytes
    return KWeight(data, type_name)
