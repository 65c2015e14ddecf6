"""The quantisers of ggml for I types, in the library that comes with llama-cpp-python."""

import ctypes
import importlib.util
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from evopress.weights.i_types import I_TYPES
from evopress.weights.iquants import IWeight

NAME = "libggml-base"


def library_path(setting: str | None) -> Path:
    """The file of the library.

    `setting` is this file or a folder that contains it. None finds llama-cpp-python in this environment. Raises
    ValueError if there is no such file.
    """
    if setting is None:
        package = importlib.util.find_spec("llama_cpp")
        folders = list(package.submodule_search_locations or []) if package else []
        found = [path for folder in folders for path in _libraries(Path(folder))]
    else:
        path = Path(setting)
        found = [path] if path.is_file() else _libraries(path)
    if not found:
        where = "this environment has no llama-cpp-python" if setting is None else f"{setting} does not contain it"
        raise ValueError(
            f"compress.types contains I types, which need ggml's library, but {where}: set compress.ggml_library to "
            "the folder of an installed llama-cpp-python, run pip install llama-cpp-python, or list only other types "
            "in compress.types"
        )
    return found[0]


def _libraries(folder: Path) -> list[Path]:
    """The files of the library in a folder, the shortest name first."""
    files = [path for ending in ("so", "dylib", "dll") for path in folder.rglob(f"*ggml-base*.{ending}")]
    return sorted(files, key=lambda path: len(path.name))


@lru_cache(maxsize=4)
def _loaded(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    size, pointer = ctypes.c_int64, ctypes.c_void_p
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, size, size, size, pointer]
    return library


def round_by_ggml(weight: Tensor, type_name: str, *, power: Tensor, library: Path) -> IWeight:
    """Round weight (rows, cols) to an I type. `power` (cols,) weighs the squared errors of the columns.

    This runs on the CPU. The result is on the device of the weight.
    """
    kind, (rows, cols) = I_TYPES[type_name], weight.shape
    source = weight.detach().cpu().float().contiguous()
    importance = power.detach().cpu().float().clamp(min=1e-30).contiguous()
    data = torch.empty(rows, cols // kind.num_weights * kind.num_bytes, dtype=torch.uint8)
    written = _loaded(library).ggml_quantize_chunk(
        kind.number, source.data_ptr(), data.data_ptr(), 0, rows, cols, importance.data_ptr()
    )
    if written != data.nbytes:
        raise ValueError(f"{library} wrote {written} bytes instead of {data.nbytes} for {type_name}")
    return IWeight(data.to(weight.device), type_name)
