"""Measures how much of a layer's output energy is lost when its weights change."""

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from math import isfinite

import torch
from torch import Tensor

from evopress.compressors.scalars import fetch_scalars
from evopress.weights.base import CompressedWeight

DenseLevels = Sequence[Callable[[], Tensor]]
"""One function per level of a layer. Each returns the dense weights (rows, cols) of that level."""


def dense_levels(levels: Sequence[Sequence[CompressedWeight]]) -> list[DenseLevels]:
    """The functions that return the dense weights of compressed weights [layer][level]."""
    return [[level.dense for level in layer_levels] for layer_levels in levels]


def energy(weight: Tensor, H: Tensor | None) -> Tensor:
    """tr(W H Wᵀ) row by row, (…, rows), for W (…, rows, cols); Σ w² without a Hessian. float64 if float32 overflows."""
    by_row = _energy_unchecked(weight, H)
    if weight.dtype == torch.float64 or bool(by_row.isfinite().all()):
        return by_row
    return energy(weight.double(), None if H is None else H.double())


def _energy_unchecked(weight: Tensor, H: Tensor | None) -> Tensor:
    """`energy` without waiting for the result. Where it overflows, it is infinite or NaN."""
    return weight.square().sum(-1) if H is None else (weight @ H).mul_(weight).sum(-1)


def _total_energy(weight: Tensor, H: Tensor | None) -> Tensor:
    return _energy_unchecked(weight, H).double().sum()


def relative_error(change: Tensor, weight: Tensor, *, H: Tensor | None) -> float:
    """tr(ΔW H ΔWᵀ) / tr(W H Wᵀ), or ‖ΔW‖² / ‖W‖² without a Hessian; 0 if the layer has no output."""
    return _ratio(*fetch_scalars(energy(change, H).double().sum(), energy(weight, H).double().sum()))


def relative_errors(
    levels: Sequence[DenseLevels],
    weights: Sequence[Tensor],
    *,
    H: Tensor | None,
    lost: Sequence[Iterable[Tensor]] | None = None,
) -> list[list[float]]:
    """`relative_error` of every level of each layer. Waits for a GPU only once, unless float32 overflows.

    Args:
        levels: The levels of each layer.
        weights: The dense weight of each layer before compression, (rows, cols).
        H: Hessian (cols, cols), or None.
        lost: tr(ΔW H ΔWᵀ) of each layer, (levels,), if it is known.
    """
    if lost is None:
        lost = [
            [_total_energy(level() - weight, H) for level in layer_levels]
            for layer_levels, weight in zip(levels, weights, strict=True)
        ]
    energies = [torch.stack([_total_energy(weight, H), *part]) for weight, part in zip(weights, lost, strict=True)]
    values = iter(torch.cat(energies).tolist())
    errors = []
    for layer_levels, weight in zip(levels, weights, strict=True):
        whole, *parts = islice(values, 1 + len(layer_levels))
        errors.append(
            [
                _ratio(part, whole)
                if isfinite(whole) and isfinite(part)
                else relative_error(level() - weight, weight, H=H)
                for level, part in zip(layer_levels, parts, strict=True)
            ]
        )
    return errors


def undamped_errors(
    levels: Sequence[DenseLevels],
    weights: Sequence[Tensor],
    *,
    losses: Sequence[Tensor],
    H: Tensor,
    absolute_damping: float,
) -> list[list[float]]:
    """`relative_errors` of levels that a sweep made, computed from its losses. This saves a product with H per level.

    `losses` holds Σ E² = tr(ΔW (H + absolute_damping·I) ΔWᵀ) of each layer, (levels,). Inputs that were always zero
    have no damping.
    """
    damping = absolute_damping * (H.diagonal() != 0).double()
    lost = []
    for layer_levels, weight, loss in zip(levels, weights, losses, strict=True):
        changes = torch.stack([(level() - weight).square_().sum(0, dtype=torch.float64) for level in layer_levels])
        lost.append(loss.double() - changes @ damping)
    return relative_errors(levels, weights, H=H, lost=lost)


def _ratio(part: float, whole: float) -> float:
    """`part` / `whole`, at least 0, and 0 where `whole` is 0."""
    return 0.0 if whole == 0 else max(part / whole, 0.0)  # in this order NaN stays NaN
