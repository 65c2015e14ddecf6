"""The levels of a profile with learnt rounding, in memory and in a file."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from evopress.tuning.tensor_files import read_tensors, write_tensors
from evopress.weights.base import CompressedWeight, from_tensors


@dataclass(frozen=True)
class ResolvedLevels:
    """The weights whose rounding was learnt, by full layer name; layers that kept their codes are missing.

    `losses` has the loss on held-out windows of every finished block, before and after.
    """

    weights: Mapping[str, CompressedWeight] = field(default_factory=dict)
    losses: tuple[tuple[float, float], ...] = ()

    def with_block(
        self, weights: Mapping[str, CompressedWeight], *, loss_before: float, loss_after: float
    ) -> "ResolvedLevels":
        """The levels with one more block."""
        return ResolvedLevels({**self.weights, **weights}, (*self.losses, (loss_before, loss_after)))


def save_resolved(path: Path, resolved: ResolvedLevels, identity: Mapping[str, object]) -> None:
    """Replace the file by these levels."""
    tensors = {
        f"{layer}/{part}": tensor
        for layer, weight in resolved.weights.items()
        for part, tensor in weight.tensors().items()
    }
    specs = {layer: weight.spec() for layer, weight in resolved.weights.items()}
    write_tensors(path, tensors, {"identity": identity, "specs": specs, "losses": resolved.losses})


def read_resolved(path: Path, identity: Mapping[str, object]) -> ResolvedLevels | None:
    """The levels in a file; None if there is none, or one of another identity or damaged."""
    content = read_tensors(path, identity)
    if content is None:
        return None
    tensors, facts = content
    parts: dict[str, dict] = {layer: {} for layer in facts["specs"]}
    for name, tensor in tensors.items():
        layer, _, part = name.rpartition("/")
        parts[layer][part] = tensor
    weights = {layer: from_tensors(spec, parts[layer]) for layer, spec in facts["specs"].items()}
    return ResolvedLevels(weights, tuple((before, after) for before, after in facts["losses"]))
