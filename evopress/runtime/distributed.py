"""Several processes that do one job together, as torchrun or `accelerate launch` start them; with one, nothing happens.

Every process runs the same program with the same settings. What is collective (all but `rank`, `world_size`,
`is_first`, `share` and `share_of`) must be called by all of them in the same order. The first process alone writes
files and tracks.

Results do not depend on the number of processes: work is cut into parts by rules that do not know it, each process
computes whole parts, and what they give is summed in the order of the parts.
"""

import atexit
import logging
import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

log = logging.getLogger(__name__)

T = TypeVar("T")

LONGEST_WAIT = timedelta(hours=12)
"""How long a process waits for the others, which may wait for another run's database or for the first one's tasks.

A process that dies is noticed at once: by its connections, and by the launcher, which ends the others.
"""


def join() -> None:
    """Meet the other processes that the launcher announces in the environment; nothing where there are none."""
    if dist.is_initialized() or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=LONGEST_WAIT)
    if is_first():
        log.info("%d processes share the work, through %s", world_size(), backend)
    atexit.register(dist.destroy_process_group)


def rank() -> int:
    """The number of this process."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this process writes files and tracks."""
    return rank() == 0


def share(items: Sequence[T]) -> Sequence[T]:
    """This process's part of `items`: neighbours, in order, as many as others give or take one."""
    return share_of(items, rank(), world_size())


def share_of(items: Sequence[T], index: int, number: int) -> Sequence[T]:
    """The part `index` of `number` parts of neighbours, as long as others give or take one."""
    return items[len(items) * index // number : len(items) * (index + 1) // number]


def barrier() -> None:
    """Wait until all processes are here."""
    gather(None)


def deliver(tensor: Tensor, *, source: int, target: int) -> Tensor | None:
    """The tensor of process `source` in process `target`; in others, which need not call this, None.

    Both give a tensor of the same shape and type.
    """
    if source == target:
        return tensor if rank() == target else None
    if rank() == source:
        dist.send(tensor, target)
    if rank() != target:
        return None
    received = torch.empty_like(tensor)
    dist.recv(received, source)
    return received


def gather(value: T) -> list[T]:
    """The values of all processes in their order. Tensors in them must be on the CPU."""
    if world_size() == 1:
        return [value]
    values: list = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def collect(value: T) -> list[T]:
    """The values of all processes for the first one; the others get an empty list."""
    if world_size() == 1:
        return [value]
    values: list | None = [None] * world_size() if is_first() else None
    dist.gather_object(value, values)
    return values or []


def from_first(make: Callable[[], T]) -> T:
    """What `make` returns in the first process, or the ValueError that it raises there; the others do not call it."""
    if world_size() == 1:
        return make()
    outcome: list = [None, None]
    if is_first():
        try:
            outcome[0] = make()
        except ValueError as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def first_then_others(make: Callable[[], T]) -> T:
    """`make` in every process, in the first one ahead of the others, which then find what it left in caches."""
    made: list[T] = []
    from_first(lambda: made.append(make()))
    return made[0] if made else make()
