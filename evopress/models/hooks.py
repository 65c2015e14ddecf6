"""Watches the inputs and outputs of layers while a model runs."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TypeVar

from torch import Tensor
from torch.nn import Module

Key = TypeVar("Key")


@contextmanager
def watch_layers(layers: Mapping[Key, Module], record: Callable[[Key, Tensor, Tensor], None]) -> Iterator[None]:
    """While open, `record(key, input, output)` is called after each call of a layer, with its first input."""

    def hook_of(key: Key) -> Callable[[Module, tuple[Tensor, ...], Tensor], None]:
        def hook(layer: Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            record(key, inputs[0], output)

        return hook

    with ExitStack() as handles:
        for key, layer in layers.items():
            handles.enter_context(layer.register_forward_hook(hook_of(key)))
        yield
