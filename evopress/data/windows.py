"""Token windows, and the random minibatches that a search draws from them."""

import hashlib
import logging
from math import ceil
from random import Random

import torch
from jaxtyping import Int
from torch import Tensor

log = logging.getLogger(__name__)

Windows = Int[Tensor, "windows time"]
"""Token ids, int64."""


def hash_of_windows(windows: Windows) -> str:
    """SHA-256 of the ids, their type and how they are cut into windows."""
    digest = hashlib.sha256(f"{windows.dtype} {tuple(windows.shape)}".encode())
    digest.update(windows.cpu().numpy().tobytes())
    return digest.hexdigest()


def minibatch(
    windows: Windows, num_tokens: int, rng: Random, *, excerpt: int | None = None, bos: bool = False
) -> Windows:
    """Random windows without repetition, `num_tokens` in total, rounded up to whole windows.

    If fewer tokens than a window are asked for, they are the start of one window. If more tokens are asked for than
    there are, the result is all windows.

    Args:
        excerpt: Take only this many consecutive tokens of each window. They start at one random position, which is the
            same in all windows. The same number of tokens then comes from more texts.
        bos: Whether windows start with the BOS token. An excerpt then starts with it as well.
    """
    count, length = minibatch_shape(len(windows), windows.shape[1], num_tokens, excerpt)
    chosen = windows[rng.sample(range(len(windows)), count)]
    start = rng.randint(0, windows.shape[1] - length) if excerpt else 0
    tokens = chosen[:, start : start + length]
    return torch.cat([chosen[:, :1], tokens[:, 1:]], 1) if bos else tokens


def minibatch_shape(num_windows: int, window: int, num_tokens: int, excerpt: int | None) -> tuple[int, int]:
    """How many windows a minibatch has, and how many tokens of each."""
    length = min(window, num_tokens, excerpt or num_tokens)
    return min(num_windows, ceil(num_tokens / length)), length


def warn_if_small(tokens: Windows, num_tokens: int) -> bool:
    """Log a warning if a minibatch has fewer tokens than were asked for. Returns whether it has."""
    is_small = tokens.numel() < num_tokens
    if is_small:
        log.warning(
            "the search asks for a minibatch of %d tokens, but data.search_tokens gives only %d windows, %d tokens of "
            "each: raise data.search_tokens, or the excerpt of the search",
            num_tokens,
            *tokens.shape,
        )
    return is_small
