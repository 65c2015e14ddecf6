"""The Hessian of a layer's output error, computed from the layer's inputs."""

import torch
from torch import Tensor

from evopress.compressors.outer_products import add_outer_products


class RunningHessian:
    """2/n Σ w x xᵀ over all inputs seen so far, float32, (cols, cols), as a running mean. All w are 1 unless given.

    Only the diagonal of `mean` and the entries above it are valid; `result` mirrors them.
    """

    def __init__(self, cols: int, *, device: torch.device | str = "cpu"):
        self.mean = torch.zeros(cols, cols, device=device)
        self.num_tokens = 0

    def update(self, X: Tensor, token_weights: Tensor | None = None) -> None:
        """Add inputs X (tokens, cols) of any float type: H ← H·m/(m+k) + 2/(m+k)·Xᵀ diag(w) X.

        The weights w (tokens,) may have any common factor. Products √w·x are rounded to the type of X if it has the
        range of float32.
        """
        if not len(X):
            return
        if token_weights is not None:
            scaled = X.float() * token_weights.sqrt().unsqueeze(1)
            X = scaled if X.dtype == torch.float16 else scaled.to(X.dtype)
        total = self.num_tokens + len(X)
        add_outer_products(self.mean, X, beta=self.num_tokens / total, alpha=2 / total)
        self.num_tokens = total

    def merge(self, mean: Tensor, num_tokens: int) -> None:
        """Add the mean of `num_tokens` other inputs. The order of merges affects the last digits."""
        total = self.num_tokens + num_tokens
        if num_tokens:
            self.mean.mul_(self.num_tokens / total).add_(mean, alpha=num_tokens / total)
        self.num_tokens = total

    def is_finite(self) -> Tensor:
        """Whether all inputs were finite, as a bool tensor that a GPU may still be computing."""
        return self.mean.diagonal().isfinite().all()  # |H_ij| is at most the larger of H_ii and H_jj

    def result(self) -> Tensor:
        """The whole symmetric matrix. It is `mean` itself, because a copy would take as much memory again."""
        mirror_(self.mean)
        return self.mean


def mirror_(A: Tensor) -> None:
    """Copy the entries above the diagonal of a square matrix to those below it, some rows at a time."""
    at_once = max(1, len(A) // 32)
    for first in range(0, len(A), at_once):
        rows = slice(first, first + at_once)
        A[rows, :first] = A[:first, rows].t()
        square = A[rows, rows]
        square.copy_(square.triu() + square.triu(1).t())


def towards_identity(H: Tensor, share: float) -> Tensor:
    """share·H + (1 − share)·m·I, where m is the mean of H's diagonal, or 1 if that is zero."""
    power = float(H.diagonal().double().mean()) or 1.0
    mixed = share * H
    mixed.diagonal().add_((1 - share) * power)
    return mixed
