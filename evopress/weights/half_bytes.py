"""Numbers as the bytes of float16, as they lie in the blocks of ggml."""

import torch
from torch import Tensor


def half(values: Tensor) -> Tensor:
    """The values rounded to float16 and limited to its range, as float32."""
    limit = torch.finfo(torch.float16).max
    return values.clamp(-limit, limit).half().float()


def halves_to_bytes(values: Tensor) -> Tensor:
    """float16 bytes of (rows, blocks) as uint8 (rows, blocks, 2)."""
    halves = values.half().clone(memory_format=torch.contiguous_format)  # a single column may have any stride
    return halves.view(torch.uint8).unflatten(1, (-1, 2))


def bytes_to_halves(data: Tensor) -> Tensor:
    """Undo `halves_to_bytes`, from uint8 (rows, blocks, 2) to float32 (rows, blocks)."""
    return data.contiguous().view(torch.float16).float().squeeze(-1)
