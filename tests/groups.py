"""Layer groups with correlated inputs, as trained layers have, for the tests of compressors."""

import torch
from torch import Tensor

from evopress.compressors.base import LayerGroup
from evopress.compressors.hessian import RunningHessian


def inputs(cols: int, tokens: int | None = None, *, seed: int = 0) -> Tensor:
    """Correlated inputs (tokens, cols), float64."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(cols, cols, generator=generator, dtype=torch.float64)
    powers = torch.logspace(0, -1.5, cols, dtype=torch.float64)
    return torch.randn(tokens or 4 * cols, cols, generator=generator, dtype=torch.float64) * powers @ mix


def normal_inputs(tokens: int = 200, cols: int = 24) -> Tensor:
    """Correlated inputs (tokens, cols), float32."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(tokens, cols, generator=generator) @ torch.randn(cols, cols, generator=generator)


def hessian_of(X: Tensor) -> Tensor:
    running = RunningHessian(X.shape[1])
    running.update(X)
    return running.result()


def group(
    rows: tuple[int, ...], cols: int, X: Tensor | None = None, *, dtype: torch.dtype = torch.float32, seed: int = 0
) -> LayerGroup:
    """A group of layers "layer0", … whose Hessian comes from `X`."""
    X = inputs(cols) if X is None else X
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(count, cols, generator=generator, dtype=torch.float64).to(dtype) for count in rows]
    H = 2 / len(X) * X.t() @ X
    names = tuple(f"layer{index}" for index in range(len(rows)))
    return LayerGroup(names, tuple(weights), ((H + H.t()) / 2).to(dtype))


def with_hessian(layers: LayerGroup, H: Tensor) -> LayerGroup:
    return LayerGroup(layers.names, layers.weights, H)
