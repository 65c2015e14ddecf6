"""The triangular factor of the inverse of a damped Hessian."""

from dataclasses import dataclass

import torch
from torch import Tensor

from evopress.compressors.scalars import fetch_scalars

MAX_COLS_AT_ONCE = 256
"""A matrix with more columns is factored in two halves, mostly by matrix products. This affects only the speed."""


@dataclass(frozen=True)
class InverseFactor:
    """An upper triangular U with (H + absolute_damping·I)⁻¹ = UᵀU, or None if every factorisation failed.

    `dead` (cols,) marks inputs that were always zero. Their weights have no effect and must be set to zero, because U
    treats dead inputs as independent inputs of unit power. `notes` are sentences about dead inputs and failed
    factorisations.
    """

    U: Tensor | None
    dead: Tensor
    absolute_damping: float = 0.0
    notes: tuple[str, ...] = ()


def column_order(H: Tensor, *, by_power: bool) -> Tensor:
    """The order in which a sweep visits the columns, (cols,): by decreasing diagonal of H, or from left to right."""
    return H.diagonal().argsort(descending=True, stable=True) if by_power else torch.arange(len(H), device=H.device)


def factor_inverse(H: Tensor, *, damp: float, order: Tensor | None = None) -> InverseFactor:
    """Factor the inverse of a Hessian H (cols, cols), damped by `damp` times its mean diagonal.

    With `order`, rows and columns are permuted first. H is not changed. Besides H, this needs at most the memory of
    1.75 matrices of its size. If the factorisation fails, it is repeated in float64, and then with 10, 100 and 1000
    times the damping. If these fail as well, U is None. Each attempt waits for a GPU once.

    Raises:
        ValueError: H is not finite.
    """
    order = torch.arange(len(H), device=H.device) if order is None else order
    dead = H.diagonal()[order] == 0
    diagonal = H.diagonal()[order] + dead.to(H.dtype)
    mean_power, all_finite = diagonal.double().mean(), _is_finite(H)
    notes: list[str] = []
    for dtype, increase in ((H.dtype, 1), (torch.float64, 1), *((torch.float64, 10.0**power) for power in (1, 2, 3))):
        damping = damp * increase * mean_power
        U, is_factor = _upper_factor_of_inverse(H, order=order, diagonal=diagonal.to(dtype) + damping)
        is_finite, num_dead, is_done, absolute_damping = fetch_scalars(all_finite, dead.sum(), is_factor, damping)
        if not is_finite:
            raise ValueError("the Hessian is not finite: its calibration inputs contain NaN or infinite values")
        if num_dead == len(H):
            return InverseFactor(None, dead, notes=("all calibration inputs were zero",))
        if num_dead and not notes:
            notes.append(f"{num_dead:.0f} of {len(H)} inputs were always zero; their weights are set to zero")
        if is_done:
            return InverseFactor(U.to(H.dtype), dead, absolute_damping, tuple(notes))
        del U
        notes.append(f"the Hessian with damping {damp * increase:g} could not be factored in {dtype}")
    return InverseFactor(None, dead, notes=tuple(notes))


def _is_finite(A: Tensor) -> Tensor:
    """Whether all entries are finite, a bool tensor."""
    smallest, largest = A.aminmax()  # NaN if any entry is, and faster than a test of all entries
    return smallest.isfinite() & largest.isfinite()


def _upper_factor_of_inverse(H: Tensor, *, order: Tensor, diagonal: Tensor) -> tuple[Tensor, Tensor]:
    """U = M⁻¹, and whether this succeeded. M Mᵀ is the permuted H with this diagonal, and M is upper triangular.

    With rows and columns in reverse order, M is the lower Cholesky factor. This takes half the work of factoring the
    inverse of H, and it is more accurate, because the inverse itself is never computed. All steps share one matrix.
    """
    reverse = order.flip(0)
    U = H[reverse.unsqueeze(1), reverse].to(diagonal.dtype)
    U.diagonal().copy_(diagonal.flip(0))
    _invert_lower_factor_(U)
    _reverse_(U)
    return U, _is_finite(U) & (U.diagonal() > 0).all()


def _invert_lower_factor_(H: Tensor) -> None:
    """Replace H = L Lᵀ by L⁻¹, where L is lower triangular. The result contains NaN if H is not positive definite."""
    size = len(H)
    if size <= MAX_COLS_AT_ONCE:
        L, failed = torch.linalg.cholesky_ex(H)
        eye = torch.eye(size, dtype=H.dtype, device=H.device)
        H.copy_(torch.linalg.solve_triangular(L, eye, upper=False).masked_fill_(failed != 0, torch.nan))
        return
    half = size // 2
    first, second, below = H[:half, :half], H[half:, half:], H[half:, :half]
    _invert_lower_factor_(first)
    L_below = below @ first.t()
    second.addmm_(L_below, L_below.t(), alpha=-1)
    _invert_lower_factor_(second)
    torch.mm(second, L_below @ first, out=below).neg_()
    H[:half, half:] = 0


def _reverse_(A: Tensor) -> None:
    """Reverse the rows and the columns of a square matrix, some rows at a time."""
    size = len(A)
    at_once = max(1, size // 32)
    for first in range(0, size // 2, at_once):
        last = min(first + at_once, size // 2)
        top, bottom = A[first:last], A[size - last : size - first]
        reversed_top = top.flip(0, 1)
        top.copy_(bottom.flip(0, 1))
        bottom.copy_(reversed_top)
    if size % 2:
        A[size // 2] = A[size // 2].flip(0)
