from pathlib import Path

import pytest
import torch

from evopress.runtime import memory

MEGABYTE = 10**6


def test_a_peak_is_measured_since_the_last_start():
    memory.start_peak()
    before = memory.peak_bytes()
    held = torch.ones(50 * MEGABYTE)
    assert memory.peak_bytes() - before > 150 * MEGABYTE
    del held


def test_a_run_on_the_cpu_has_the_peak_of_its_process_on_a_machine_with_a_gpu_too(monkeypatch):
    """CUDA is there but not initialised: its own peak would be 0, and asking for it would take GPU memory."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.max_memory_allocated", None)
    monkeypatch.setattr("torch.cuda.reset_peak_memory_stats", None)
    memory.start_peak()
    assert memory.peak_bytes() > 50 * MEGABYTE


def test_a_run_on_a_gpu_has_the_peak_of_the_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda: 123)
    assert memory.peak_bytes() == 123


@pytest.mark.parametrize("unit", [1, 1024])
def test_without_proc_the_peak_is_that_of_the_operating_system_in_bytes(unit, monkeypatch):
    """macOS counts bytes, others kilobytes."""

    def missing(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", missing)
    monkeypatch.setattr(memory, "MAXRSS_UNIT", unit)
    monkeypatch.setattr("resource.getrusage", lambda who: type("Usage", (), {"ru_maxrss": 7})())
    assert memory.peak_bytes() == 7 * unit
