"""The results of a run as a text table."""

from collections.abc import Iterable, Mapping, Sequence

from evopress.evaluation.candidates import Candidate
from evopress.evaluation.task_scores import Scores, metric_keys, short_key, stderr_key


def as_table(candidates: Mapping[str, Candidate]) -> str:
    """A row per candidate, with the first score of every task and its standard error."""
    data_sets = list(next(iter(candidates.values())).perplexity)
    tasks = _main_keys(candidates.values())
    header = ["", "MB", "bits/weight", *(f"{kind} {name}" for name in data_sets for kind in ("ppl", "KL"))]
    header += [f"{task} {short_key(key)}" for task, key in tasks.items()]
    rows = [
        [
            name,
            f"{candidate.size_bytes / 1e6:.1f}",
            f"{candidate.bits_per_weight_with_scales:.2f}",
            *(cell for key in data_sets for cell in (f"{candidate.perplexity[key]:.4g}", f"{candidate.kl[key]:z.4f}")),
            *(_score(candidate.tasks.get(task, {}), key) for task, key in tasks.items()),
        ]
        for name, candidate in candidates.items()
    ]
    return _aligned([header, *rows])


def _main_keys(candidates: Iterable[Candidate]) -> dict[str, str]:
    """The main metric of every task that has one."""
    scores = {task: scores for candidate in candidates for task, scores in candidate.tasks.items()}
    return {task: key for task, task_scores in scores.items() for key in metric_keys(task_scores)[:1]}


def _score(scores: Scores, key: str) -> str:
    """0.6127 → 0.613 ± 0.011; – if the task was not scored."""
    if key not in scores:
        return "–"
    value, error = scores[key], scores.get(stderr_key(key))
    digits = ".3f" if abs(value) < 10 else ".4g"
    return f"{value:{digits}}" if error is None else f"{value:{digits}} ± {error:{digits}}"


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
