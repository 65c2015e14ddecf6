"""One job on several processes, as started by torchrun or `accelerate launch`. With one process, nothing is sent.

Every process runs the same program with the same settings. All processes must call collective functions in the same
order: `join`, `barrier`, `gather`, `collect`, `from_first` and `first_then_others`. Only the first process writes files
and tracks metrics, except that the files of a task are written by the process that ran it.

Results do not depend on the number of processes. The work is always cut into the same parts. One process computes each
part, and the results are summed in the order of the parts.
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
"""The timeout of collective functions. A process may wait this long for others that build a database or run tasks.

If a process dies, the others do not wait this long: its connections break, and the launcher terminates them.
"""


def join() -> None:
    """Connect to the other processes, if the environment variables of a launcher name any.

    Raises ValueError if some of these variables are missing.
    """
    if dist.is_initialized() or os.environ.get("WORLD_SIZE", "1") == "1":
        return
    _check_environment()
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=LONGEST_WAIT)
    if is_first():
        log.info("%d processes share the work, through %s", world_size(), backend)
    atexit.register(dist.destroy_process_group)


def _check_environment() -> None:
    """Raises ValueError if WORLD_SIZE is not a number or the other variables of a launcher are missing."""
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    number = os.environ["WORLD_SIZE"]
    if missing or not number.isdigit():
        reason = f"{' and '.join(missing)} not set" if missing else "that is not a number"
        raise ValueError(
            f"the environment variable WORLD_SIZE is {number!r} but {reason}: for one process, unset WORLD_SIZE; for "
            "several, start them with torchrun --nproc-per-node NUMBER -m evopress.run, which sets all of them"
        )


def rank() -> int:
    """The index of this process."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_world_size() -> int:
    """The number of processes on this machine, which share its memory."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))


def is_first() -> bool:
    """Whether this is the process that writes files and tracks metrics."""
    return rank() == 0


def share(items: Sequence[T]) -> Sequence[T]:
    """The consecutive items that this process works on. The sizes of shares differ by at most one."""
    return share_of(items, rank(), world_size())


def share_of(items: Sequence[T], index: int, number: int) -> Sequence[T]:
    """Share `index` of `items`, cut into `number` shares of consecutive items. Their sizes differ by at most one."""
    return items[len(items) * index // number : len(items) * (index + 1) // number]


def barrier() -> None:
    """Wait until all processes have called this."""
    gather(None)


def deliver(tensor: Tensor, *, source: int, target: int) -> Tensor | None:
    """Send a tensor from process `source` to process `target`. Returns it in `target` and None in all others.

    Not collective: only these two need to call it, with tensors of the same shape and dtype.
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
    """The values of all processes, by rank. Tensors in them must be on the CPU."""
    if world_size() == 1:
        return [value]
    values: list = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def collect(value: T) -> list[T]:
    """The values of all processes, by rank, in the first process; an empty list in the others."""
    if world_size() == 1:
        return [value]
    values: list | None = [None] * world_size() if is_first() else None
    dist.gather_object(value, values)
    return values or []


def from_first(make: Callable[[], T]) -> T:
    """Call `make` in the first process only. Every process returns its result, or raises its ValueError."""
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
    """Call `make` in every process, first in the first one, so that the others find its files in caches."""
    made: list[T] = []
    from_first(lambda: made.append(make()))
    return made[0] if made else make()
