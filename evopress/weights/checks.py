"""Checks of values from a file, which may be damaged or hostile. All of them raise ValueError."""

from collections.abc import Mapping

import torch
from torch import Tensor

MAX_WEIGHTS = 2**36
"""A file that claims more weights in a layer than this counts as damaged."""

FLOATS = (torch.float16, torch.bfloat16, torch.float32)


def checked_integer(spec: Mapping[str, object], key: str, *, low: int, high: int) -> int:
    """`spec[key]`, an integer from `low` to `high`."""
    value = spec.get(key)
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{key} must be an integer from {low} to {high}, not {value!r}")
    return value


def checked_matrix(tensors: Mapping[str, Tensor], key: str, *, dtypes: tuple[torch.dtype, ...]) -> Tensor:
    """`tensors[key]`, a matrix of one of the types with at least one element."""
    tensor = tensors.get(key)
    if tensor is None or tensor.ndim != 2 or tensor.dtype not in dtypes or not tensor.numel():
        raise ValueError(f"{key} is missing or not a matrix of {' or '.join(str(dtype) for dtype in dtypes)}")
    return tensor


def checked_vector(tensors: Mapping[str, Tensor], key: str, *, dtype: torch.dtype, length: int) -> Tensor:
    """`tensors[key]`, a vector of this type and length."""
    tensor = tensors.get(key)
    if tensor is None or tensor.shape != (length,) or tensor.dtype != dtype:
        raise ValueError(f"{key} is missing or not a vector of {length} {dtype}")
    return tensor


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
