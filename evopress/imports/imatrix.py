"""Importance matrices of llama.cpp: the mean square of every input of a layer, as `llama-imatrix` writes them.

A file has the tensors `<name>.in_sum2`, sums of squares, and `<name>.counts`, numbers of tokens, where the names are
those of a GGUF file of the model.

Source: `tools/imatrix/imatrix.cpp` of llama.cpp, GGUF format.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MOST_BLOCKS = 1024
"""More blocks than any model has. Names do not depend on the number of blocks."""


@lru_cache(maxsize=4)
def read_imatrix(path: str) -> dict[str, Tensor]:
    """The mean squares (inputs,) by the name of the weight in GGUF files.

    Raises:
        ValueError: The file cannot be read, or a tensor does not fit.
    """
    try:
        from gguf import GGUFReader  # optional package
    except ImportError as error:
        raise ValueError("compress.imatrix needs the package gguf: pip install 'evopress[gguf]'") from error
    if not Path(path).is_file():
        raise ValueError(f"compress.imatrix is {path!r}, which is not a file: set it to a file of llama-imatrix")
    try:
        tensors = {tensor.name: torch.tensor(tensor.data).float() for tensor in GGUFReader(path).tensors}
    except Exception as error:  # a damaged file can raise errors of many types
        raise ValueError(
            f"compress.imatrix: {path} cannot be read as GGUF ({error}): convert older files with "
            "`llama-imatrix --in-file OLD -o NEW.gguf`"
        ) from error
    sums = {name.removesuffix(".in_sum2"): tensor for name, tensor in tensors.items() if name.endswith(".in_sum2")}
    if not sums:
        raise ValueError(
            f"compress.imatrix: {path} has no tensor whose name ends in .in_sum2, so it is not an importance matrix: "
            "set compress.imatrix to a file of llama-imatrix"
        )
    return {name: _mean(path, name, total.flatten(), tensors.get(f"{name}.counts")) for name, total in sums.items()}


def _mean(path: str, name: str, total: Tensor, counts: Tensor | None) -> Tensor:
    if counts is None or counts.numel() != 1 or not bool(total.isfinite().all()) or bool((total < 0).any()):
        raise ValueError(f"compress.imatrix: {name} of {path} is not a sum of squares with one count")
    return total / counts.flatten().clamp(min=1)


@lru_cache(maxsize=1)
def _names() -> Any:
    """The names in GGUF files. Those of the supported architectures are the same."""
    from gguf import MODEL_ARCH, get_tensor_name_map

    return get_tensor_name_map(MODEL_ARCH.LLAMA, MOST_BLOCKS)


def power_of(path: str, layer: str, cols: int) -> Tensor | None:
    """The mean squares of the inputs of a layer, by its name in transformers; None if the file does not have them.

    Raises ValueError if the file has another number of them.
    """
    means = read_imatrix(path)
    name = _names().get_name(f"{layer}.weight", try_suffixes=(".weight",))
    power = means.get(name or "")
    if power is not None and len(power) != cols:
        raise ValueError(
            f"compress.imatrix: {name} of {path} has {len(power)} inputs, but {layer} has {cols}: use a file that was "
            "made for this model"
        )
    return power
