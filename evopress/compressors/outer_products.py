"""Sums of outer products, by the fastest matrix product of the machine that is as accurate as in float32."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache

import torch
from torch import Tensor

log = logging.getLogger(__name__)

STRIPE = 192
"""Rows of the sum that are computed at once, each from the diagonal on. This affects only the speed."""

MAX_ERROR_RATIO = 1.5
"""The largest accepted ratio between the error of fast products and the error of float32 products."""

_SAMPLE_SHAPE = (1024, 320)
"""Tokens and columns of the matrix that the errors are measured on."""


def add_outer_products(total: Tensor, X: Tensor, *, beta: float, alpha: float) -> None:
    """total ← beta·total + alpha·XᵀX, on the diagonal and above it. Entries below the diagonal become meaningless.

    Args:
        total: float32, (cols, cols).
        X: (tokens, cols), any float type. Products of bfloat16 values use `bfloat16_factors` if that is exact.
    """
    is_fast = X.dtype == torch.bfloat16 and bfloat16_factors_are_exact(X.device.type)
    with bfloat16_factors() if is_fast else nullcontext():
        _add_in_stripes(total, X.detach().float(), beta=beta, alpha=alpha)


def _add_in_stripes(total: Tensor, X: Tensor, *, beta: float, alpha: float) -> None:
    for first in range(0, len(total), STRIPE):
        rows = total[first : first + STRIPE, first:]
        rows.addmm_(X[:, first : first + STRIPE].t(), X[:, first:], beta=beta, alpha=alpha)


@contextmanager
def bfloat16_factors() -> Iterator[None]:
    """While open, float32 matrix products may round their factors to bfloat16, or to TF32 on a GPU.

    This does not change factors that are bfloat16 values, and float32 holds the product of any two of them exactly.
    Only the sum of the products can be less accurate than usual, which depends on the processor.
    """
    on_cpu = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    backends = ((on_cpu, "bf16"), (torch.backends.cuda.matmul, "tf32"))
    before = [backend.fp32_precision for backend, _ in backends]
    try:
        for backend, precision in backends:
            backend.fp32_precision = precision
        yield
    finally:
        for (backend, _), precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


@cache
def bfloat16_factors_are_exact(device_type: str) -> bool:
    """Whether sums of products of bfloat16 values are as accurate with `bfloat16_factors` as without, on this device.

    Some processors round more in these sums: with AVX-512 BF16 but without AMX, errors are four to seven times as
    large. So the first call compares both kinds of product with float64, always on the same pseudo-random matrix.
    """
    if device_type not in ("cpu", "cuda"):
        return False
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(_SAMPLE_SHAPE, generator=generator).bfloat16().float().to(device_type)
    usual = _largest_error(X)
    with bfloat16_factors():
        fast = _largest_error(X)
    is_exact = fast <= MAX_ERROR_RATIO * usual
    log.info(
        "products of bfloat16 inputs on %s: the error with bfloat16 factors is %.2f times that with float32 factors; "
        "%s are used",
        device_type,
        fast / usual,
        "bfloat16 factors" if is_exact else "float32 factors",
    )
    return is_exact


def _largest_error(X: Tensor) -> float:
    """The largest error of the float32 sum of outer products of X, on the diagonal and above it."""
    total = X.new_zeros(X.shape[1], X.shape[1])
    _add_in_stripes(total, X, beta=1.0, alpha=1.0)
    return float((total.double() - X.double().t() @ X.double()).triu().abs().max())
