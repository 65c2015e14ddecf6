"""Tensors are copied to the device one ahead of their use, and blocks that are offloaded two at a time."""

import pytest
import torch

from evopress.models import transfers
from evopress.models.offload import DeviceCopy
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
