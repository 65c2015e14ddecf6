"""Keeps packed levels near the device that decodes them."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from typing import Protocol

import torch
from torch import Tensor

from evopress.runtime.memory import free_memory_bytes
from evopress.weights.base import CompressedWeight


class PackedLevels(Protocol):
    """Levels as they are stored."""

    def read(self, block: int, layer: str, level: int) -> CompressedWeight:
        """One level of one layer, given by its full name."""


@dataclass
class Room:
    """Memory for packed levels. `copy` copies a level there, and `free_bytes` is how much still fits."""

    copy: Callable[[CompressedWeight], CompressedWeight]
    free_bytes: float


class ResidentLevels:
    """The levels of a database. Levels are copied to the first room that has space when they are read first.

    They stay there: blocks are visited in turn, so replacing a level by another would gain nothing. Levels that fit
    nowhere are read from the database, whose files are mapped into memory.
    """

    def __init__(self, database: PackedLevels, rooms: Callable[[], list[Room]]):
        self.database = database
        self._measure_rooms = rooms
        self._levels: dict[tuple[int, str, int], CompressedWeight] = {}

    @cached_property
    def rooms(self) -> list[Room]:
        """Measured at the first read, when the model is in memory."""
        return self._measure_rooms()

    def read(self, block: int, layer: str, level: int) -> CompressedWeight:
        """One level of one layer, given by its full name, in the room where it is kept or from the database."""
        key = (block, layer, level)
        if key in self._levels:
            return self._levels[key]
        stored = self.database.read(block, layer, level)
        room = next((room for room in self.rooms if stored.size_bytes <= room.free_bytes), None)
        if room is None:
            return stored
        room.free_bytes -= stored.size_bytes
        self._levels[key] = room.copy(stored)
        return self._levels[key]


def rooms_near(device: torch.device) -> list[Room]:
    """For a GPU, half of its free memory, then a quarter of the machine's, which is pinned. None for other devices.

    Pinned memory is allocated in powers of two, so the quarter may become a half. A CPU decodes levels from the mapped
    files, which the operating system keeps in memory as far as there is room.
    """
    if device.type != "cuda":
        return []
    return [
        Room(partial(_copied, device=device), free_memory_bytes(device) / 2),
        Room(_pinned, free_memory_bytes(torch.device("cpu")) / 4),
    ]


def _copied(weight: CompressedWeight, device: torch.device) -> CompressedWeight:
    return weight.to(device)


def _pinned(weight: CompressedWeight) -> CompressedWeight:
    """The weight in pages that stay in memory, from which a GPU copies fast and without waiting."""
    parts = {part.name: getattr(weight, part.name) for part in fields(weight)}  # type: ignore[arg-type]
    pinned = {name: part.pin_memory() for name, part in parts.items() if isinstance(part, Tensor)}
    return replace(weight, **pinned)  # type: ignore[type-var]
