"""The running Hessian of a layer's input and the triangular factor of its inverse."""

from dataclasses import dataclass

import torch
from torch import Tensor


class RunningHessian:
    """2/n Σ x xᵀ over all inputs seen so far, float32, (cols, cols), as a running mean."""

    def __init__(self, cols: int, *, device: torch.device | str = "cpu"):
        self.mean = torch.zeros(cols, cols, device=device)
        self.num_tokens = 0

    def update(self, X: Tensor) -> None:
        """Add inputs X (tokens, cols) of any float type: H ← H·m/(m+k) + 2/(m+k)·XᵀX."""
        if not len(X):
            return
        X = X.detach().float()
        total = self.num_tokens + len(X)
        self.mean.addmm_(X.t(), X, beta=self.num_tokens / total, alpha=2 / total)
        self.num_tokens = total

    def merge(self, mean: Tensor, num_tokens: int) -> None:
        """Add the mean of `num_tokens` other inputs; the order of merges matters to the last digits."""
        total = self.num_tokens + num_tokens
        if num_tokens:
            self.mean.mul_(self.num_tokens / total).add_(mean, alpha=num_tokens / total)
        self.num_tokens = total

    def result(self, layer: str) -> Tensor:
        """The mean. Raises ValueError, naming `layer`, when an input was not finite."""
        if not bool(self.mean.isfinite().all()):
            raise ValueError(
                f"the calibration inputs of {layer} are not finite: check the dense model, or load it in a wider type "
                f"with model.dtype=float32"
            )
        return self.mean


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
    if not bool(H.isfinite().all()):
        raise ValueError("the Hessian is not finite: its calibration inputs hold NaN or infinite values")
    dead = H.diagonal() == 0
    if bool(dead.all()):
        return InverseFactor(None, dead, notes=("no calibration input was ever other than zero",))
    num_dead = int(dead.sum())
    notes = [f"{num_dead} of {len(H)} inputs were always zero, their weights are set to zero"] if num_dead else []
    H = H + torch.diag(dead.to(H.dtype))
    mean_power = float(H.diagonal().double().mean())
    for dtype, factor in ((H.dtype, 1), (torch.float64, 1), *((torch.float64, 10.0**power) for power in (1, 2, 3))):
        absolute = damp * factor * mean_power
        U = _upper_factor_of_inverse(H.to(dtype), absolute)
        if U is not None:
            return InverseFactor(U.to(H.dtype), dead, absolute, tuple(notes))
        notes.append(f"the Hessian with damping {damp * factor:g} could not be factored in {dtype}")
    return InverseFactor(None, dead, notes=tuple(notes))


def _upper_factor_of_inverse(H: Tensor, damp: float) -> Tensor | None:
    L, failed = torch.linalg.cholesky_ex(H + damp * torch.eye(len(H), dtype=H.dtype, device=H.device))
    if int(failed):
        return None
    U, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(L), upper=True)
    return None if int(failed) or not bool(U.isfinite().all()) or not bool((U.diagonal() > 0).all()) else U


def towards_identity(H: Tensor, share: float) -> Tensor:
    """`share` of H and the rest of it the identity times H's mean diagonal; the identity itself where H is zero."""
    power = float(H.diagonal().double().mean()) or 1.0
    return share * H + (1 - share) * power * torch.eye(len(H), dtype=H.dtype, device=H.device)


def energy(weight: Tensor, H: Tensor | None) -> Tensor:
    """tr(W H Wᵀ) row by row, (…, rows), for W (…, rows, cols); Σ w² without a Hessian. float64 where that overflows."""
    found = weight.square().sum(-1) if H is None else (weight @ H).mul_(weight).sum(-1)
    if weight.dtype == torch.float64 or bool(found.isfinite().all()):
        return found
    return energy(weight.double(), None if H is None else H.double())


def relative_error(change: Tensor, weight: Tensor, H: Tensor | None) -> float:
    """tr(ΔW H ΔWᵀ) / tr(W H Wᵀ), or ‖ΔW‖² / ‖W‖² without a Hessian; 0 where the layer has no output."""
    return ratio(energy(change, H).double().sum(), energy(weight, H).double().sum())


def ratio(part: Tensor, whole: Tensor) -> float:
    """`part` / `whole`, at least 0, and 0 where `whole` is 0."""
    return 0.0 if float(whole) == 0 else max(float(part) / float(whole), 0.0)  # in this order NaN stays NaN
