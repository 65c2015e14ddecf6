import psutil
import pytest
import torch

from evopress.runtime.memory import free_memory_bytes

CPU = torch.device("cpu")


def test_free_memory_is_what_programs_can_still_take_and_not_all_there_is(monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 3000, "total": 9000})())
    assert free_memory_bytes(CPU) == 3000


@pytest.mark.parametrize(("on_this_machine", "share"), [("1", 3000), ("2", 1500)])
def test_only_the_processes_of_one_machine_share_its_memory(on_this_machine, share, monkeypatch):
    """Of four processes in all."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 3000})())
    monkeypatch.setattr("evopress.runtime.distributed.world_size", lambda: 4)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", on_this_machine)
    assert free_memory_bytes(CPU) == share
