"""The memory, the disk space and the work of a run, as estimated from its configuration alone."""

from dataclasses import dataclass

from evopress.planning.work import Work


@dataclass(frozen=True)
class MemoryItem:
    """A part of the memory of a stage: what it holds, its size, and the settings that make it smaller.

    `remedy` is empty where no setting would.
    """

    content: str
    size_bytes: int
    remedy: str = ""


@dataclass(frozen=True)
class StageEstimate:
    """One stage. `tokens` (token equivalents) and `work` are those of all processes together.

    `memory` is what a process holds at the peak.
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
    """A whole run. The disk space is that of all processes together.

    `database_bytes` is the size of all levels, without the headers of the files. `states_bytes` is the size of the
    files that keep hidden states while the database is built. `disk_remedies` are settings that make them smaller.
    """

    num_weights: int
    num_units: int
    database_bytes: int
    states_bytes: int
    disk_remedies: tuple[str, ...]
    stages: tuple[StageEstimate, ...]
