"""What a run found: dense, uniform and searched side by side, as a table and as `results.json`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from evopress.space.units import Profile, Space


@dataclass
class Candidate:
    """One model of the comparison: its size, and what was measured of it per data set or task."""

    size_bytes: int
    bits_per_weight: float
    bits_per_weight_with_scales: float
    perplexity: dict[str, float] = field(default_factory=dict)
    kl: dict[str, float] = field(default_factory=dict)
    kl_by_position: dict[str, list[float]] = field(default_factory=dict)
    tasks: dict[str, dict[str, float]] = field(default_factory=dict)

    def figures(self) -> dict[str, float]:
        """Every number under a name such as `kl/wikitext2`."""
        sizes = {"size_bytes": self.size_bytes, "bits_per_weight_with_scales": self.bits_per_weight_with_scales}
        scores = {f"perplexity/{name}": value for name, value in self.perplexity.items()}
        scores |= {f"kl/{name}": value for name, value in self.kl.items()}
        tasks = {f"{task}/{key}": value for task, of_task in self.tasks.items() for key, value in of_task.items()}
        return {**sizes, **scores, **tasks}


def dense_candidate(size_bytes: int) -> Candidate:
    return Candidate(size_bytes, 16.0, 16.0)


def compressed_candidate(space: Space, profile: Profile, bits: float) -> Candidate:
    """`bits` are those of the weights alone; scales and zero points come on top in the level's bytes."""
    stored = space.size_bytes(profile) - space.fixed_bytes
    return Candidate(space.size_bytes(profile), bits, 8 * stored / space.num_weights)


def as_table(candidates: Mapping[str, Candidate]) -> str:
    """A text table, one row per candidate, that fits 100 columns for two data sets and one task."""
    sets = list(next(iter(candidates.values())).perplexity)
    tasks = sorted({name for candidate in candidates.values() for name in candidate.tasks})
    header = ["", "MB", "bits/weight", *(f"{kind} {name}" for name in sets for kind in ("ppl", "KL")), *tasks]
    rows = [
        [
            name,
            f"{candidate.size_bytes / 1e6:.1f}",
            f"{candidate.bits_per_weight_with_scales:.2f}",
            *(cell for key in sets for cell in (f"{candidate.perplexity[key]:.4g}", f"{candidate.kl[key]:.4f}")),
            *(f"{_headline(candidate.tasks.get(task, {})):.3f}" for task in tasks),
        ]
        for name, candidate in candidates.items()
    ]
    return _aligned([header, *rows])


def _headline(scores: Mapping[str, float]) -> float:
    """The one figure of a task that a table shows."""
    return next((scores[name] for name in ("acc_norm", "acc", "exact_match") if name in scores), float("nan"))


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join(lines)
