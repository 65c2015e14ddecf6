"""Temporarily replaces weights and modules of a model. Afterwards the model is exactly as it was before."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor
from torch.nn import Module, Parameter


@contextmanager
def replaced_weights(model: Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """While open, the modules with these names have these weights, on the devices of the originals.

    Raises AttributeError, before anything is changed, for a name that does not exist.
    """
    originals = {name: model.get_submodule(name).get_parameter("weight") for name in weights}
    try:
        for name, weight in weights.items():
            parameter = Parameter(weight.to(originals[name].device), requires_grad=False)
            model.get_submodule(name).weight = parameter
        yield
    finally:
        for name, original in originals.items():
            model.get_submodule(name).weight = original


@contextmanager
def replaced_modules(model: Module, modules: Mapping[str, Module]) -> Iterator[None]:
    """While open, the submodules at these paths are replaced by `modules`."""
    originals = {path: model.get_submodule(path) for path in modules}
    try:
        for path, module in modules.items():
            model.set_submodule(path, module)
        yield
    finally:
        for path, original in originals.items():
            model.set_submodule(path, original)
