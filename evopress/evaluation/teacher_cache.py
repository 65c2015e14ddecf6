"""Keeps the dense model's final states, so that they are computed once per minibatch."""

from collections import OrderedDict
from collections.abc import Callable

from torch import Tensor

from evopress.data.windows import hash_of_windows


class TeacherCache:
    """Final hidden states by token windows, up to `limit_bytes`; the oldest are dropped first."""

    def __init__(self, limit_bytes: float):
        self.limit_bytes = limit_bytes
        self._states: OrderedDict[str, Tensor] = OrderedDict()

    @property
    def size_bytes(self) -> int:
        return sum(states.nbytes for states in self._states.values())

    def get(self, tokens: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        """The states on `tokens`, from the cache or from `compute`."""
        key = hash_of_windows(tokens)
        if key not in self._states:
            self._states[key] = compute()
        states = self._states[key]
        while self.size_bytes > self.limit_bytes:
            self._states.popitem(last=False)
        return states

    def clear(self) -> None:
        self._states.clear()
