"""The results of a run as a text table."""

from collections.abc import Mapping, Sequence

from evopress.evaluation.candidates import Candidate

HEADLINE_METRICS = ("acc_norm", "acc", "exact_match")
"""The table shows the first of these metrics that a task has."""


def as_table(candidates: Mapping[str, Candidate]) -> str:
    """A row per candidate. With two data sets and one task, a line has at most 100 characters."""
    data_sets = list(next(iter(candidates.values())).perplexity)
    tasks = sorted({name for candidate in candidates.values() for name in candidate.tasks})
    header = ["", "MB", "bits/weight", *(f"{kind} {name}" for name in data_sets for kind in ("ppl", "KL")), *tasks]
    rows = [
        [
            name,
            f"{candidate.size_bytes / 1e6:.1f}",
            f"{candidate.bits_per_weight_with_scales:.2f}",
            *(cell for key in data_sets for cell in (f"{candidate.perplexity[key]:.4g}", f"{candidate.kl[key]:.4f}")),
            *(f"{_headline(candidate.tasks.get(task, {})):.3f}" for task in tasks),
        ]
        for name, candidate in candidates.items()
    ]
    return _aligned([header, *rows])


def _headline(scores: Mapping[str, float]) -> float:
    return next((scores[name] for name in HEADLINE_METRICS if name in scores), float("nan"))


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
