"""Tensors are copied to the device one ahead of their use, and blocks that are offloaded two at a time."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from evopress.models import state_storage, transfers
from evopress.models.offload import DeviceCopy
from evopress.models.state_storage import PINNED_SHARE, StateMemory
from evopress.models.transfers import Transfer, prefetched
from tests.tiny_models import tiny

CPU, META = torch.device("cpu"), torch.device("meta")


@pytest.mark.parametrize("count", range(4))
def test_the_next_tensor_is_copied_while_one_is_used_and_no_further_one(count, monkeypatch):
    events: list[str] = []

    class Recorded(Transfer):
        def __init__(self, source, device):
            events.append(f"start {int(source)}")
            super().__init__(source, device)

    monkeypatch.setattr(transfers, "Transfer", Recorded)
    for tensor in prefetched([torch.tensor(number) for number in range(count)], CPU):
        events.append(f"use {int(tensor)}")
    starts = [f"start {number}" for number in range(count)]
    uses = [f"use {number}" for number in range(count)]
    expected = [*starts[:1], *(event for pair in zip(starts[1:], uses, strict=False) for event in pair), *uses[-1:]]
    assert events == expected


def test_a_tensor_that_is_on_the_device_is_not_copied():
    tensor = torch.ones(2)
    assert Transfer(tensor, CPU).tensor() is tensor
    assert Transfer(tensor, META).tensor().device == META


def test_copies_of_two_blocks_are_kept_and_each_tensor_is_copied_once(monkeypatch):
    lm, copies, started = tiny("llama"), DeviceCopy(), []
    monkeypatch.setattr(
        "evopress.models.offload.Transfer", lambda tensor, device: started.append(tensor) or Transfer(tensor, device)
    )

    def tensors_of(index: int, excluded: tuple[str, ...] = ()) -> dict[str, torch.Tensor]:
        return copies.tensors_of(index, lm.blocks[index], device=META, excluded=excluded)

    names = dict(lm.blocks[0].named_parameters())
    copies.prefetch(0, lm.blocks[0], device=META, excluded=(next(iter(names)),))
    assert len(started) == len(names) - 1
    assert tensors_of(0).keys() == names.keys() and len(started) == len(names)
    for _ in range(3):  # as calibration does: one block, then the next, for every batch
        for index in (0, 1):
            assert all(tensor.device == META for tensor in tensors_of(index).values())
    assert len(started) == 2 * len(names)
    tensors_of(2)
    assert list(copies.blocks) == [1, 2]


class FakeGpu:
    """Replaces the functions of a GPU that `Transfer` uses, and records the order of their calls."""

    def __init__(self, monkeypatch):
        self.calls: list[str] = []
        to = torch.Tensor.to
        current, copying = self.stream("current"), self.stream("copying")
        monkeypatch.setattr(transfers, "_copy_stream", lambda device: copying)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: self.calls.append("pin") or tensor)
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: self.calls.append("record use"))

        def send(tensor, device, **kwargs):
            if torch.device(device).type != "cuda":
                return to(tensor, device, **kwargs)
            self.calls.append("copy without waiting" if kwargs.get("non_blocking") else "copy")
            return tensor.clone()

        monkeypatch.setattr(torch.Tensor, "to", send)

    def stream(self, name: str):
        return SimpleNamespace(
            wait_stream=lambda other: self.calls.append(f"{name} waits for stream"),
            wait_event=lambda event: self.calls.append(f"{name} waits for {event}"),
            record_event=lambda: self.calls.append("event") or "event",
        )


def test_a_gpu_copies_on_its_own_stream_after_earlier_work_and_before_later_work(monkeypatch):
    gpu, source = FakeGpu(monkeypatch), torch.arange(3)
    transfer = Transfer(source, torch.device("cuda:0"))
    assert gpu.calls == ["copying waits for stream", "pin", "copy without waiting", "event"]
    gpu.calls.clear()
    assert torch.equal(transfer.tensor(), source)
    assert gpu.calls == ["current waits for event", "record use"]


def test_states_of_a_gpu_beyond_the_limit_are_pinned_while_enough_memory_is_free(tmp_path, monkeypatch):
    states, empty, pinned = [torch.full((4, 2), float(number)) for number in range(5)], torch.empty, []

    def counted_empty(*args, pin_memory=False, **kwargs):
        pinned.extend([args] * pin_memory)
        return empty(*args, **kwargs)

    monkeypatch.setattr(torch, "empty", counted_empty)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True, raising=False)
    monkeypatch.setattr(state_storage, "free_memory_bytes", lambda device: 2 * states[0].nbytes / PINNED_SHARE)
    kept = StateMemory(states[0].nbytes, tmp_path).keep(iter(states))
    assert all(torch.equal(state, copy) for state, copy in zip(states, kept, strict=True))
    assert [state is copy for state, copy in zip(states, kept, strict=True)] == [True] + [False] * 4
    assert len(pinned) == 2
