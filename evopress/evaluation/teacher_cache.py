"""Keeps the dense model's final states, so that they are computed once per minibatch."""

from collections import OrderedDict
from collections.abc import Callable, Sequence

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

    def get(self, parts: Sequence[Tensor], compute: Callable[[Sequence[Tensor]], Sequence[Tensor]]) -> list[Tensor]:
        """The states on each part of the windows, from the cache or, for all other parts at once, from `compute`."""
        keys = [hash_of_windows(part) for part in parts]
        part_of = dict(zip(keys, parts, strict=True))
        known = {key: self._states[key] for key in part_of if key in self._states}
        missing = [key for key in part_of if key not in known]
        known.update(zip(missing, compute([part_of[key] for key in missing]), strict=True))
        self._states.update({key: known[key] for key in missing})
        self.shrink(self.limit_bytes)
        return [known[key] for key in keys]

    def shrink(self, limit_bytes: float) -> None:
        """Drop the oldest states until the others fit into `limit_bytes`."""
        while self.size_bytes > limit_bytes:
            self._states.popitem(last=False)

    def clear(self) -> None:
        self._states.clear()
