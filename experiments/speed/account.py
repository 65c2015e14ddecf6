"""Counts what a question costs a GPU besides arithmetic: launches, waits of the host, copies and decoded levels.

    python -m experiments.speed.account

All of it is counted on a CPU, with a tiny model whose blocks, levels and hidden states count as stored on the host. So
the figures do not depend on the machine, and tests hold limits for them (`tests/test_account.py`).
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode

from evopress.compressors.rtn import RTN
from evopress.database.build import BatchLimits, build_database
from evopress.database.cache import DecodedLevels
from evopress.database.store import Database
from evopress.evaluation.evaluator import Evaluator, EvaluatorSettings
from evopress.evaluation.switch_effects import switch_effects
from evopress.models.language_model import LanguageModel
from evopress.models.loading import load_model
from evopress.models.source import ModelSource
from evopress.models.state_storage import StateMemory
from evopress.models.transfers import Transfer
from evopress.space.build import layer_space
from evopress.space.settings import SpaceSettings
from evopress.space.units import Profile, Space
from evopress.weights.base import CompressedWeight
from experiments.speed import setting

log = logging.getLogger("account")

aten = torch.ops.aten
READS = (aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.is_nonzero, aten._unique2)
"""Operations for which the host waits until a GPU has computed a value."""


WINDOW, BATCH_TOKENS = 64, 128


class Account(TorchDispatchMode):
    """Counts while it is open.

    `launches` are operations that compute or copy; views are not counted. `waits` are reads of values and lists, and
    results whose size depends on values. `copied_bytes` are those of blocks and hidden states that are copied from the
    host to the device, `level_bytes` those of packed levels. `decodes` counts levels.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches = 0
        self.waits = 0
        self.copied_bytes = 0
        self.level_bytes = 0
        self.decodes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.launches += not func.is_view
        indices = args[1] if func.overloadpacket == aten.index else ()
        has_mask = any(index is not None and index.dtype == torch.bool for index in indices)
        self.waits += has_mask or func.overloadpacket in READS
        return func(*args, **(kwargs or {}))


@contextmanager
def counted() -> Iterator[Account]:
    """Count everything that happens while this is open. Parameters and states in files count as stored on the host."""
    account, states_on_host = Account(), WeakValueDictionary[int, Tensor]()
    tolist, start, decode, send = Tensor.tolist, Transfer.__init__, DecodedLevels._decode, CompressedWeight.to
    copies = StateMemory._copies

    def counted_list(tensor: Tensor) -> object:
        account.waits += 1
        return tolist(tensor)

    def noted_copies(memory: StateMemory, states: Iterable[Tensor]) -> Iterator[Tensor]:
        for copy in copies(memory, states):
            states_on_host[id(copy)] = copy
            yield copy

    def counted_start(transfer: Transfer, source: Tensor, device: torch.device) -> None:
        if isinstance(source, Parameter) or states_on_host.get(id(source)) is source:
            account.copied_bytes += source.nbytes
        start(transfer, source, device)

    def counted_decode(levels: DecodedLevels, block: int, layer: str, level: int) -> Tensor:
        account.decodes += 1
        return decode(levels, block, layer, level)

    def counted_send(weight: CompressedWeight, device: torch.device) -> CompressedWeight:
        account.level_bytes += weight.size_bytes
        return send(weight, device)

    replacements: list[tuple[type, str, Callable[..., object]]] = [
        (Tensor, "tolist", counted_list),
        (StateMemory, "_copies", noted_copies),
        (Transfer, "__init__", counted_start),
        (DecodedLevels, "_decode", counted_decode),
        (CompressedWeight, "to", counted_send),
    ]
    with ExitStack() as stack:
        for owner, name, replacement in replacements:
            stack.enter_context(patch.object(owner, name, replacement))
        yield stack.enter_context(account)


@contextmanager
def all_offloaded() -> Iterator[None]:
    """While open, all parameters of blocks are copied to the device before they are used."""
    with patch("evopress.models.offload.is_offloaded", lambda tensor, device: True):
        yield


def evaluator_of(lm: LanguageModel, compressor: RTN, folder: Path, *, states_gb: float) -> Evaluator:
    """An evaluator that keeps nothing decoded between the blocks."""
    database = Database.open(folder, "account", {})
    build_database(lm, compressor, torch.zeros(1, 8, dtype=torch.long), database, limits=BatchLimits(batch_tokens=8))
    settings = EvaluatorSettings(states_gb=states_gb, batch_tokens=BATCH_TOKENS)
    weights = DecodedLevels(database, limit_bytes=1, dtype=lm.dtype, device=lm.device)
    return Evaluator(lm, layer_space(lm, compressor, SpaceSettings()), weights, settings, folder=folder)


def tokens_of(lm: LanguageModel, num_windows: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(lm.vocab_size, (num_windows, WINDOW), generator=generator)


def random_profiles(space: Space, count: int) -> list[Profile]:
    rng = Random(0)
    return [tuple(rng.randrange(len(unit.levels)) for unit in space.units) for _ in range(count)]


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    lm = load_model(ModelSource(name="tiny", package="evopress", path="assets/tiny", device="cpu"), setting.CACHE)
    tokens = tokens_of(lm, 8)
    log.info("%-36s %9s %7s %9s %9s %9s", "question", "launches", "waits", "copied MB", "levels MB", "decodes")
    for states_gb, place in ((2.0, "states on the device"), (1e-9, "states on the host")):
        with TemporaryDirectory() as folder, all_offloaded():
            evaluator = evaluator_of(lm, RTN(bits=(2, 3, 4), group_size=64), Path(folder), states_gb=states_gb)
            profiles = random_profiles(evaluator.space, 8)
            questions: dict[str, Callable[[], object]] = {
                "8 profiles": partial(evaluator.evaluate, profiles, tokens),
                "table": partial(
                    switch_effects,
                    evaluator.compressible,
                    profiles[0],
                    parts=tokens.split(2),
                    draws=2,
                    rng=Random(0),
                    memory=evaluator.state_memory,
                ),
            }
            for name, question in questions.items():
                question()  # each level is checked when it is read first
                evaluator.forget_teacher()
                with counted() as account:
                    question()
                log.info(
                    "%-36s %9d %7d %9.1f %9.2f %9d",
                    f"{name}, {place}",
                    *(account.launches, account.waits, account.copied_bytes / 1e6, account.level_bytes / 1e6),
                    account.decodes,
                )


if __name__ == "__main__":
    main()
