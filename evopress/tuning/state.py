"""The state of an unfinished tuning, and the result of a finished one, in memory and in files."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from evopress.tuning.adam import Moments
from evopress.tuning.tensor_files import Tensors, read_tensors, write_tensors


@dataclass(frozen=True)
class TuningState:
    """The state after `step` steps. The tensors are keyed by the names of the parameters.

    `checks` has a pair (step, KL) for every measurement; the first is that of the untuned model. `best` has the changes
    at the best check. It is empty as long as the untuned model is the best. `is_stopped` is whether the tuning ends
    here, before its last step.
    """

    changes: Tensors
    moments: dict[str, Moments]
    best: Tensors = field(default_factory=dict)
    checks: list[tuple[int, float]] = field(default_factory=list)
    step: int = 0
    is_stopped: bool = False

    @property
    def best_kl(self) -> float:
        return min(kl for _, kl in self.checks)

    @property
    def checks_since_best(self) -> int:
        """The number of checks after the best one."""
        kls = [kl for _, kl in self.checks]
        return len(kls) - 1 - kls.index(min(kls))

    def to(self, device: torch.device) -> "TuningState":
        """The same state, with its tensors on a device."""
        moments = {name: Moments(*(moment.to(device) for moment in moments)) for name, moments in self.moments.items()}
        changes, best = ({name: r.to(device) for name, r in kept.items()} for kept in (self.changes, self.best))
        return replace(self, changes=changes, best=best, moments=moments)

    def checked(self, kl: float) -> "TuningState":
        """The state with one more check. If it is the best so far, its changes become `best`."""
        is_best = not self.checks or kl < self.best_kl
        best = {name: change.clone() for name, change in self.changes.items()} if is_best and self.step else self.best
        return replace(self, best=best, checks=[*self.checks, (self.step, kl)])


@dataclass(frozen=True)
class TuningResult:
    """A finished tuning: the checks, and the changes at the best one, which are empty if that is the untuned model."""

    changes: Tensors
    checks: list[tuple[int, float]]

    @property
    def num_steps(self) -> int:
        """The number of steps that were taken."""
        return self.checks[-1][0]

    @property
    def kl_before(self) -> float:
        return self.checks[0][1]

    @property
    def kl_after(self) -> float:
        """KL of the model that is kept."""
        return min(kl for _, kl in self.checks)


def new_state(changes: Mapping[str, Tensor]) -> TuningState:
    """The state before the first step."""
    moments = {name: Moments(torch.zeros_like(r), torch.zeros_like(r)) for name, r in changes.items()}
    return TuningState(dict(changes), moments)


def save_state(path: Path, state: TuningState, identity: Mapping[str, object]) -> None:
    """Write the state. An older file is replaced."""
    tensors = _prefixed("changes", state.changes) | _prefixed("best", state.best)
    for moment in Moments._fields:
        tensors |= _prefixed(moment, {name: getattr(moments, moment) for name, moments in state.moments.items()})
    write_tensors(
        path,
        tensors,
        {"identity": identity, "checks": state.checks, "step": state.step, "is_stopped": state.is_stopped},
    )


def read_state(path: Path, identity: Mapping[str, object]) -> TuningState | None:
    """The saved state; None if the file is missing, damaged, or has another identity."""
    content = read_tensors(path, identity)
    if content is None:
        return None
    tensors, facts = content
    changes, best, first, second = (_with_prefix(kind, tensors) for kind in ("changes", "best", *Moments._fields))
    moments = {name: Moments(first[name], second[name]) for name in changes}
    checks = [(step, kl) for step, kl in facts["checks"]]
    return TuningState(changes, moments, best, checks, facts["step"], facts.get("is_stopped", False))


def save_result(path: Path, result: TuningResult, identity: Mapping[str, object]) -> None:
    """Write a finished tuning."""
    write_tensors(path, _prefixed("changes", result.changes), {"identity": identity, "checks": result.checks})


def read_result(path: Path, identity: Mapping[str, object]) -> TuningResult | None:
    """The finished tuning; None if the file is missing, damaged, or has another identity."""
    content = read_tensors(path, identity)
    if content is None:
        return None
    tensors, facts = content
    return TuningResult(_with_prefix("changes", tensors), [(step, kl) for step, kl in facts["checks"]])


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def _with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    return {n.removeprefix(f"{prefix}/"): tensor for n, tensor in tensors.items() if n.startswith(f"{prefix}/")}
