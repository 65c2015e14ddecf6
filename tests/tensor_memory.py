"""Counts the bytes of tensors that are alive at once, which does not depend on the machine."""

import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

T = TypeVar("T")


class _LiveStorages(TorchDispatchMode):
    """Adds up the storages that operations make, and subtracts those that are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.live_bytes = self.peak_bytes = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        given = {id_of(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and id_of(leaf) not in given | self._known:
                self._add(leaf.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self._known.add(key)
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live_bytes -= size


def id_of(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def peak_bytes(call: Callable[[], T]) -> tuple[T, int]:
    """The result of a call, and the most bytes of its own tensors that were alive at once, without its arguments.

    What an operation allocates and frees inside itself is not counted.
    """
    with _LiveStorages() as storages:
        result = call()
    return result, storages.peak_bytes
