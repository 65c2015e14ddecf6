"""Transfers single numbers from a device to Python."""

import torch
from torch import Tensor


def fetch_scalars(*tensors: Tensor) -> list[float]:
    """The values of one-element tensors, in a single transfer from the device."""
    return torch.stack([tensor.double() for tensor in tensors]).tolist() if tensors else []
