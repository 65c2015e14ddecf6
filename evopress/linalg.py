"""The running Hessian of a layer's input and the triangular factor of its inverse."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

STRIPE = 192
"""Rows of a Hessian that are computed at once, from the diagonal on. Changes the speed only."""

RECURSIVE = 256
"""Columns above which a matrix is factored in two halves, most of it as products. Changes the speed only."""


class RunningHessian:
    """2/n Σ x xᵀ over all inputs seen so far, float32, (cols, cols), as a running mean.

    Of `mean`, only what is above the diagonal counts: the rest is its mirror image and computed in part.
    """

    def __init__(self, cols: int, *, device: torch.device | str = "cpu"):
        self.mean = torch.zeros(cols, cols, device=device)
        self.num_tokens = 0

    def update(self, X: Tensor) -> None:
        """Add inputs X (tokens, cols) of any float type: H ← H·m/(m+k) + 2/(m+k)·XᵀX."""
        if not len(X):
            return
        total = self.num_tokens + len(X)
        with bfloat16_factors() if X.dtype == torch.bfloat16 else nullcontext():
            X = X.detach().float()
            for stripe in range(0, len(self.mean), STRIPE):
                own = X[:, stripe : stripe + STRIPE].t()
                upper = self.mean[stripe : stripe + STRIPE, stripe:]
                upper.addmm_(own, X[:, stripe:], beta=self.num_tokens / total, alpha=2 / total)
        self.num_tokens = total

    def merge(self, mean: Tensor, num_tokens: int) -> None:
        """Add the mean of `num_tokens` other inputs; the order of merges matters to the last digits."""
        total = self.num_tokens + num_tokens
        if num_tokens:
            self.mean.mul_(self.num_tokens / total).add_(mean, alpha=num_tokens / total)
        self.num_tokens = total

    def result(self, layer: str) -> Tensor:
        """The mean, symmetric. Raises ValueError, naming `layer`, when an input was not finite."""
        if not bool(self.mean.diagonal().isfinite().all()):  # no other entry is larger than the two it belongs to
            raise ValueError(
                f"the calibration inputs of {layer} are not finite: check the dense model, or load it in a wider type "
                f"with model.dtype=float32"
            )
        return self.mean.triu() + self.mean.triu(1).t()


@contextmanager
def bfloat16_factors() -> Iterator[None]:
    """While open, float32 matrix products may round their factors to bfloat16, or to TF32 on a GPU.

    For factors that hold bfloat16 values this loses nothing: a product of two of them is exact in float32, in which the
    products are still summed up.
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


@dataclass(frozen=True)
class InverseFactor:
    """U, upper triangular, with (H + damp·I)⁻¹ = UᵀU; None when no factorisation succeeded.

    `dead` (cols,) marks inputs that were always zero. Their weights must be set to zero: they have no effect, and U
    treats them as independent inputs of unit power. `damp` is absolute. `notes` say what went other than planned.
    """

    U: Tensor | None
    dead: Tensor
    damp: float = 0.0
    notes: tuple[str, ...] = ()


def inverse_factor(H: Tensor, *, damp: float) -> InverseFactor:
    """Factor the inverse of a Hessian H (cols, cols), damped by `damp` times its mean diagonal.

    On failure: the same in float64, then with damping ten, a hundred, a thousand times as high, then None.
    Raises ValueError when H is not finite.
    """
    dead = H.diagonal() == 0
    is_finite, num_dead, power = _scalars(H.isfinite().all(), dead.sum(), H.diagonal().double().sum())
    if not is_finite:
        raise ValueError("the Hessian is not finite: its calibration inputs hold NaN or infinite values")
    if num_dead == len(H):
        return InverseFactor(None, dead, notes=("no calibration input was ever other than zero",))
    notes = [f"{num_dead:.0f} of {len(H)} inputs were always zero, their weights are set to zero"] if num_dead else []
    H = H + torch.diag(dead.to(H.dtype))
    mean_power = (power + num_dead) / len(H)
    for dtype, factor in ((H.dtype, 1), (torch.float64, 1), *((torch.float64, 10.0**power) for power in (1, 2, 3))):
        absolute = damp * factor * mean_power
        U = _upper_factor_of_inverse(H.to(dtype), absolute)
        if U is not None:
            return InverseFactor(U.to(H.dtype), dead, absolute, tuple(notes))
        notes.append(f"the Hessian with damping {damp * factor:g} could not be factored in {dtype}")
    return InverseFactor(None, dead, notes=tuple(notes))


def _scalars(*found: Tensor) -> list[float]:
    """The values of tensors of one element, in one transfer from the device."""
    return torch.stack([each.double() for each in found]).tolist()


def _upper_factor_of_inverse(H: Tensor, damp: float) -> Tensor | None:
    """From H = M Mᵀ with M upper triangular, that is, the lower factor of H read backwards: U = M⁻¹.

    Half the work of a factor of the inverse of H, and more accurate, as the inverse itself never exists.
    """
    damped = H + damp * torch.eye(len(H), dtype=H.dtype, device=H.device)
    U = _inverse_of_factor(damped.flip(0, 1)).flip(0, 1)
    least, largest = U.aminmax()  # NaN if there is one, and faster than a look at each
    return U if bool(least.isfinite() & largest.isfinite() & (U.diagonal() > 0).all()) else None


def _inverse_of_factor(H: Tensor) -> Tensor:
    """L⁻¹ for H = L Lᵀ with L lower triangular; NaN where H is not positive definite."""
    size = len(H)
    if size <= RECURSIVE:
        L, failed = torch.linalg.cholesky_ex(H)
        eye = torch.eye(size, dtype=H.dtype, device=H.device)
        return torch.linalg.solve_triangular(L, eye, upper=False).masked_fill_(failed != 0, torch.nan)
    half = size // 2
    first = _inverse_of_factor(H[:half, :half])
    below = H[half:, :half] @ first.t()  # that of L
    second = _inverse_of_factor(torch.addmm(H[half:, half:], below, below.t(), alpha=-1))
    inverse = torch.zeros_like(H)
    inverse[:half, :half], inverse[half:, half:] = first, second
    torch.mm(second, below @ first, out=inverse[half:, :half]).neg_()
    return inverse


def towards_identity(H: Tensor, share: float) -> Tensor:
    """`share` of H and the rest of it the identity times H's mean diagonal; the identity itself where H is zero."""
    power = float(H.diagonal().double().mean()) or 1.0
    return share * H + (1 - share) * power * torch.eye(len(H), dtype=H.dtype, device=H.device)


def energy(weight: Tensor, H: Tensor | None) -> Tensor:
    """tr(W H Wᵀ) row by row, (…, rows), for W (…, rows, cols); Σ w² without a Hessian. float64 where that overflows."""
    found = output_energy(weight, H)
    if weight.dtype == torch.float64 or bool(found.isfinite().all()):
        return found
    return energy(weight.double(), None if H is None else H.double())


def output_energy(weight: Tensor, H: Tensor | None) -> Tensor:
    """The same without a look at the result; infinite or NaN where it overflows."""
    return weight.square().sum(-1) if H is None else (weight @ H).mul_(weight).sum(-1)


def relative_error(change: Tensor, weight: Tensor, H: Tensor | None) -> float:
    """tr(ΔW H ΔWᵀ) / tr(W H Wᵀ), or ‖ΔW‖² / ‖W‖² without a Hessian; 0 where the layer has no output."""
    return ratio(*_scalars(energy(change, H).double().sum(), energy(weight, H).double().sum()))


def ratio(part: float, whole: float) -> float:
    """`part` / `whole`, at least 0, and 0 where `whole` is 0."""
    return 0.0 if whole == 0 else max(part / whole, 0.0)  # in this order NaN stays NaN
