"""The running Hessian of a layer's input and the triangular factor of its inverse."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from math import isfinite

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

    def is_finite(self) -> Tensor:
        """Whether all inputs were finite, a bool that has not been waited for."""
        return self.mean.diagonal().isfinite().all()  # no other entry is larger than the two it belongs to

    def result(self) -> Tensor:
        """The mean, symmetric."""
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

    On failure: the same in float64, then with damping ten, a hundred, a thousand times as high, then None. A GPU is
    waited for once per attempt. Raises ValueError when H is not finite.
    """
    dead, all_finite = H.diagonal() == 0, H.isfinite().all()
    H = H + torch.diag(dead.to(H.dtype))
    mean_power = H.diagonal().double().mean()
    notes: list[str] = []
    for dtype, factor in ((H.dtype, 1), (torch.float64, 1), *((torch.float64, 10.0**power) for power in (1, 2, 3))):
        absolute = damp * factor * mean_power
        U, is_factor = _upper_factor_of_inverse(H.to(dtype), absolute)
        is_finite, num_dead, done, own_damp = scalars(all_finite, dead.sum(), is_factor, absolute)
        if not is_finite:
            raise ValueError("the Hessian is not finite: its calibration inputs hold NaN or infinite values")
        if num_dead == len(H):
            return InverseFactor(None, dead, notes=("no calibration input was ever other than zero",))
        if num_dead and not notes:
            notes.append(f"{num_dead:.0f} of {len(H)} inputs were always zero, their weights are set to zero")
        if done:
            return InverseFactor(U.to(H.dtype), dead, own_damp, tuple(notes))
        notes.append(f"the Hessian with damping {damp * factor:g} could not be factored in {dtype}")
    return InverseFactor(None, dead, notes=tuple(notes))


def scalars(*found: Tensor) -> list[float]:
    """The values of tensors of one element, in one transfer from the device."""
    return torch.stack([each.double() for each in found]).tolist() if found else []


def _upper_factor_of_inverse(H: Tensor, damp: Tensor) -> tuple[Tensor, Tensor]:
    """From H = M Mᵀ with M upper triangular, that is, the lower factor of H read backwards: U = M⁻¹; and whether it is.

    Half the work of a factor of the inverse of H, and more accurate, as the inverse itself never exists.
    """
    damped = H + damp * torch.eye(len(H), dtype=H.dtype, device=H.device)
    U = _inverse_of_factor(damped.flip(0, 1)).flip(0, 1)
    least, largest = U.aminmax()  # NaN if there is one, and faster than a look at each
    return U, least.isfinite() & largest.isfinite() & (U.diagonal() > 0).all()


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


Levels = Sequence[Callable[[], Tensor]]
"""Dense weights (rows, cols) of a layer by level, made when they are called for."""


def relative_errors(
    layers: Sequence[tuple[Levels, Tensor]], H: Tensor | None, lost: Sequence[Iterable[Tensor]] | None = None
) -> list[list[float]]:
    """`relative_error` of every level of each layer; a GPU is waited for once.

    A layer is given by its levels and its dense weight before. `lost` is tr(ΔW H ΔWᵀ) of each layer, (levels,), where
    it is known. What is beyond float32 is computed again in float64.
    """
    if lost is None:
        lost = [[_sum(level() - weight, H) for level in levels] for levels, weight in layers]
    energies = [torch.stack([_sum(weight, H), *part]) for (_, weight), part in zip(layers, lost, strict=True)]
    values = iter(torch.cat(energies).tolist())
    found = []
    for levels, weight in layers:
        whole, *parts = islice(values, 1 + len(levels))
        are_sound = [isfinite(whole) and isfinite(part) for part in parts]
        found.append(
            [
                ratio(part, whole) if is_sound else relative_error(level() - weight, weight, H)
                for level, part, is_sound in zip(levels, parts, are_sound, strict=True)
            ]
        )
    return found


def relative_error(change: Tensor, weight: Tensor, H: Tensor | None) -> float:
    """tr(ΔW H ΔWᵀ) / tr(W H Wᵀ), or ‖ΔW‖² / ‖W‖² without a Hessian; 0 where the layer has no output."""
    return ratio(*scalars(energy(change, H).double().sum(), energy(weight, H).double().sum()))


def _sum(weight: Tensor, H: Tensor | None) -> Tensor:
    return output_energy(weight, H).double().sum()


def ratio(part: float, whole: float) -> float:
    """`part` / `whole`, at least 0, and 0 where `whole` is 0."""
    return 0.0 if whole == 0 else max(part / whole, 0.0)  # in this order NaN stays NaN
