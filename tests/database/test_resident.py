"""Packed levels stay where they were copied first, as far as there is room."""

import pytest
import torch

from evopress.database.cache import DecodedLevels
from evopress.database.resident import ResidentLevels, Room, rooms_near
from evopress.weights.base import CompressedWeight
from evopress.weights.dense import Kept
from tests.databases import WEIGHTS

KEYS = [(block, "layer", level) for block in range(3) for level in range(2)]
SIZE = 2 * 3 * 4


class Stored:
    """A database whose levels have the same size, and the keys that were read from it."""

    def __init__(self) -> None:
        self.reads: list[tuple[int, str, int]] = []

    def read(self, block: int, layer: str, level: int) -> CompressedWeight:
        self.reads.append((block, layer, level))
        return Kept(torch.full((2, 3), 10.0 * block + level))


def room(num_levels: int, offset: float) -> Room:
    """Room for some levels. A weight that was copied there is recognised by its offset."""
    return Room(lambda weight: Kept(weight.dense() + offset), num_levels * SIZE)


def value(weight: CompressedWeight) -> float:
    return float(weight.dense()[0, 0])


def test_levels_fill_the_rooms_in_order_and_are_read_once_where_there_is_room():
    stored = Stored()
    resident = ResidentLevels(stored, lambda: [room(2, 0.25), room(1, 0.5)])
    for _ in range(3):
        found = [value(resident.read(*key)) for key in KEYS]
        assert found == [0.25, 1.25, 10.5, 11.0, 20.0, 21.0]
    assert stored.reads == [*KEYS, *KEYS[3:], *KEYS[3:]]


def test_rooms_are_measured_when_the_first_level_is_read():
    measured = []
    resident = ResidentLevels(Stored(), lambda: measured.append(None) or [])
    assert not measured
    for key in KEYS:
        resident.read(*key)
    assert len(measured) == 1


def test_a_cpu_decodes_from_the_files(monkeypatch):
    monkeypatch.setattr("evopress.database.resident.free_memory_bytes", lambda device: 10**9)
    assert rooms_near(torch.device("cpu")) == []
    assert [room.free_bytes for room in rooms_near(torch.device("cuda"))] == [5e8, 2.5e8]


def test_levels_are_decoded_from_where_they_are():
    resident = ResidentLevels(Stored(), lambda: [room(1, 0.5)])
    weights = DecodedLevels(Stored(), limit_bytes=1, dtype=torch.float64, device=torch.device("cpu"), resident=resident)
    decoded = [weights.get(*key) for key in KEYS]
    assert [float(weight[0, 0]) for weight in decoded] == [0.5, 1, 10, 11, 20, 21]
    assert {weight.dtype for weight in decoded} == {torch.float64}


@pytest.mark.parametrize("kind", WEIGHTS)
def test_every_tensor_of_a_level_is_pinned(kind, monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor.clone())
    monkeypatch.setattr("evopress.database.resident.free_memory_bytes", lambda device: 10**9)
    _, of_host = rooms_near(torch.device("cuda"))
    copy = of_host.copy(WEIGHTS[kind])
    assert type(copy) is type(WEIGHTS[kind]) and torch.equal(copy.dense(), WEIGHTS[kind].dense())
    assert len(pinned) == len(WEIGHTS[kind].tensors())
