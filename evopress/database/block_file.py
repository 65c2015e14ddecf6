"""The open file of a block, from which single levels are read."""

import json
from collections.abc import Collection
from pathlib import Path

from safetensors import safe_open

from evopress.weights.base import CompressedWeight, from_tensors


class BlockFile:
    """A file that stays open and mapped into memory, with an index of its levels.

    A level is checked when it is read first. Its tensors are views of the mapped file: they take no memory of their
    own, and the operating system reads their pages when they are used and drops them when it needs the memory.
    """

    def __init__(self, path: Path):
        self._file = safe_open(path, "pt")
        self._specs = json.loads(self._file.metadata()["specs"])
        self._names: dict[str, list[str]] = {key: [] for key in self._specs}
        for name in self._file.keys():  # noqa: SIM118 - not a dict
            for key in _keys_of(name, self._names):
                self._names[key].append(name)
        self._weights: dict[str, CompressedWeight] = {}

    def read(self, key: str) -> CompressedWeight:
        """The weight of a key `layer@level`, the same object each time. Raises KeyError if it is not in the file."""
        if key not in self._weights:
            tensors = {name.removeprefix(f"{key}."): self._file.get_tensor(name) for name in self._names[key]}
            self._weights[key] = from_tensors(self._specs[key], tensors)
        return self._weights[key]


def _keys_of(name: str, keys: Collection[str]) -> list[str]:
    """The key of a tensor, or none. A tensor's name is the key, a dot and a name within the weight."""
    prefixes = (name[:end] for end in reversed(range(len(name))) if name[end] == ".")
    return [prefix for prefix in prefixes if prefix in keys][:1]
