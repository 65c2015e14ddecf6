"""The memory, the disk space, the tokens and the operations of a run, as estimated from its configuration alone."""

from dataclasses import dataclass


@dataclass(frozen=True)
class MemoryItem:
    """A part of the memory of a stage: what it holds, its size, and how a user can make it smaller."""

    content: str
    size_bytes: int
    remedy: str


@dataclass(frozen=True)
class StageEstimate:
    """One stage. The figures are those of all processes together, except `memory`, which is that of one process.

    `tokens` are token equivalents. `operations` are floating-point operations in the model's type, `solver_operations`
    those in float32. `memory` is what the process holds at the peak.
    """

    name: str
    tokens: float
    operations: float
    memory: tuple[MemoryItem, ...]
    solver_operations: float = 0.0

    @property
    def memory_bytes(self) -> int:
        return sum(item.size_bytes for item in self.memory)


@dataclass(frozen=True)
class ResourceEstimate:
    """A whole run. The disk space is that of all processes together.

    `database_bytes` is the size of all levels, without the headers of the files. `states_bytes` is the size of the
    files that keep hidden states while the database is built.
    """

    num_weights: int
    num_units: int
    database_bytes: int
    states_bytes: int
    stages: tuple[StageEstimate, ...]
