"""The memory, disk space and work of a run, estimated from its configuration alone."""

from dataclasses import dataclass

from evopress.planning.work import Work


@dataclass(frozen=True)
class MemoryItem:
    """A part of the memory of a stage: its content, its size, and the settings that make it smaller.

    `remedy` is empty if no setting makes it smaller.
    """

    content: str
    size_bytes: int
    remedy: str = ""


@dataclass(frozen=True)
class StageEstimate:
    """One stage. `tokens` (token equivalents) and `work` are totals over all processes.

    `memory` is the content of one process's memory at its peak.
    """

    name: str
    tokens: float
    work: Work
    memory: tuple[MemoryItem, ...]

    @property
    def memory_bytes(self) -> int:
        return sum(item.size_bytes for item in self.memory)


@dataclass(frozen=True)
class ResourceEstimate:
    """A whole run. Disk space is a total over all processes.

    `database_bytes` is the size of all levels, without the headers of the files. `states_bytes` is the size of the
    files that hold hidden states while the database is built. `disk_remedies` are settings that make these smaller.
    """

    num_weights: int
    num_units: int
    database_bytes: int
    states_bytes: int
    disk_remedies: tuple[str, ...]
    stages: tuple[StageEstimate, ...]
