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


def factor_inverse(H: Tensor, *, damp: float) -> InverseFactor:
    """Factor the inverse of a Hessian H (cols, cols), damped by `damp` times its mean diagonal.

    If this fails, it is repeated in float64, and then with 10, 100 and 1000 times the damping. If these fail as well, U
    is None. Each attempt waits for a GPU once.

    Raises:
        ValueError: H is not finite.
    """
    dead, all_finite = H.diagonal() == 0, H.isfinite().all()
    H = H + torch.diag(dead.to(H.dtype))
    mean_power = H.diagonal().double().mean()
    notes: list[str] = []
    for dtype, increase in ((H.dtype, 1), (torch.float64, 1), *((torch.float64, 10.0**power) for power in (1, 2, 3))):
        damping = damp * increase * mean_power
        U, is_factor = _upper_factor_of_inverse(H.to(dtype), damping)
        is_finite, num_dead, is_done, absolute_damping = fetch_scalars(all_finite, dead.sum(), is_factor, damping)
        if not is_finite:
            raise ValueError("the Hessian is not finite: its calibration inputs contain NaN or infinite values")
        if num_dead == len(H):
            return InverseFactor(None, dead, notes=("all calibration inputs were zero",))
        if num_dead and not notes:
            notes.append(f"{num_dead:.0f} of {len(H)} inputs were always zero; their weights are set to zero")
        if is_done:
            return InverseFactor(U.to(H.dtype), dead, absolute_damping, tuple(notes))
        notes.append(f"the Hessian with damping {damp * increase:g} could not be factored in {dtype}")
    return InverseFactor(None, dead, notes=tuple(notes))


def _upper_factor_of_inverse(H: Tensor, damping: Tensor) -> tuple[Tensor, Tensor]:
    """U = M⁻¹, where H + damping·I = M Mᵀ and M is upper triangular, and a bool tensor that is False if this failed.

    With rows and columns in reverse order, M is the lower Cholesky factor. This takes half the work of factoring the
    inverse of H, and it is more accurate, because the inverse itself is never computed.
    """
    damped = H + damping * torch.eye(len(H), dtype=H.dtype, device=H.device)
    U = _inverse_of_lower_factor(damped.flip(0, 1)).flip(0, 1)
    smallest, largest = U.aminmax()  # NaN if any entry is, and faster than a test of all entries
    return U, smallest.isfinite() & largest.isfinite() & (U.diagonal() > 0).all()


def _inverse_of_lower_factor(H: Tensor) -> Tensor:
    """L⁻¹, where H = L Lᵀ and L is lower triangular. Contains NaN if H is not positive definite."""
    size = len(H)
    if size <= MAX_COLS_AT_ONCE:
        L, failed = torch.linalg.cholesky_ex(H)
        eye = torch.eye(size, dtype=H.dtype, device=H.device)
        return torch.linalg.solve_triangular(L, eye, upper=False).masked_fill_(failed != 0, torch.nan)
    half = size // 2
    first = _inverse_of_lower_factor(H[:half, :half])
    L_below = H[half:, :half] @ first.t()
    second = _inverse_of_lower_factor(torch.addmm(H[half:, half:], L_below, L_below.t(), alpha=-1))
    inverse = torch.zeros_like(H)
    inverse[:half, :half], inverse[half:, half:] = first, second
    torch.mm(second, L_below @ first, out=inverse[half:, :half]).neg_()
    return inverse
