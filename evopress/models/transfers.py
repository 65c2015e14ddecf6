"""Copies tensors to the device that computes while it computes."""

from collections.abc import Iterator, Sequence
from functools import cache

import torch
from torch import Tensor


class Transfer:
    """A copy of a tensor to a device, which may still be in progress. None is made if the tensor is there already.

    A GPU copies on a stream of its own, through pinned memory. If the tensor is pinned, the host does not wait. The
    copy starts when the GPU has done all work that it was given before, because that may write to the tensor.
    """

    def __init__(self, source: Tensor, device: torch.device):
        self._event: torch.cuda.Event | None = None
        if device.type != "cuda" or source.is_cuda:
            self._copy = source.to(device)
            return
        stream = _copy_stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            self._copy = source.pin_memory().to(device, non_blocking=True)
            self._event = stream.record_event()

    def tensor(self) -> Tensor:
        """The copy. Work that is given to the GPU from now on waits until it is complete."""
        if self._event is not None:
            stream = torch.cuda.current_stream(self._copy.device)
            stream.wait_event(self._event)
            self._copy.record_stream(stream)  # so that its memory is not used again before this stream is done with it
        return self._copy


def prefetched(tensors: Sequence[Tensor], device: torch.device) -> Iterator[Tensor]:
    """Each tensor on the device. While it is used, the next one is copied. No further ones are copied yet."""
    transfers: list[Transfer] = []
    for tensor in tensors:
        transfers.append(Transfer(tensor, device))
        if len(transfers) == 2:
            yield transfers.pop(0).tensor()
    yield from (transfer.tensor() for transfer in transfers)


def store(values: Tensor, target: Tensor) -> None:
    """Copy values to memory of the device or of the host. The host waits only if that is not pinned."""
    target.copy_(values, non_blocking=target.is_pinned())


@cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
