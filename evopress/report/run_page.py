"""`report.html`, the page of one run."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from evopress.evaluation.task_scores import metric_keys, short_key, stderr_key
from evopress.report.captions import run_plots
from evopress.report.pages import render_plot, write_page
from evopress.report.read_run import read_run
from evopress.report.record import CandidateScores, Run
from evopress.report.run_warnings import overfit_gap
from evopress.report.wording import duration, megabytes


def write_report(folder: Path) -> Path:
    """Write `report.html` and `plots/*.png` into the run directory. Returns the path of the page.

    Needs no model. The page names damaged files and missing stages. Raises NotADirectoryError if there is no such
    folder.
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder: give a run directory")
    run = read_run(folder)
    plots = {
        name: plot
        for name, caption, draw in run_plots(run)
        if (plot := render_plot(caption, draw, folder / "plots" / f"{name}.png"))
    }
    path = folder / "report.html"
    write_page(
        path,
        "run.html.j2",
        title=run.title,
        run=run,
        plots=plots,
        headline=headline(run),
        gap=overfit_gap(run),
        tasks=task_rows(run.candidates),
    )
    return path


def headline(run: Run) -> list[tuple[str, str, str]]:
    """The most important numbers, as (name, value, remark). KL and perplexity are those of the final model."""
    dense, uniform, searched = (run.candidates.get(name) for name in ("dense", "uniform", "searched"))
    final = run.candidates.get(run.final)
    facts = []
    if searched and dense:
        facts.append(("Size", f"{megabytes(searched.size_bytes)} MB", f"dense {megabytes(dense.size_bytes)} MB"))
    if {"searched", "dense"} <= run.active_bytes.keys():
        used, dense_used = (megabytes(run.active_bytes[name]) for name in ("searched", "dense"))
        facts.append(("Active per token", f"{used} MB", f"dense {dense_used} MB"))
    if run.achieved is not None:
        facts.append(("Budget", _amount(run, run.achieved), f"target {run.budget}"))
    if run.seconds_per_step is not None:
        facts.append(("Time per step", f"{1000 * run.seconds_per_step:.4g} ms", "from the table of times"))
    if "searched" in run.memory:
        parts = run.memory["searched"]
        facts += [(f"Memory: {name}", f"{megabytes(size)} MB", _remark(run, name)) for name, size in parts.items()]
    for name, kl in list(final.kl.items())[:1] if final else []:
        uniform_kl = uniform.kl.get(name) if uniform else None
        remark = f"uniform {uniform_kl:.4g} ({kl / uniform_kl - 1:+.0%})" if uniform_kl else ""
        facts.append((f"KL on {name}", f"{kl:.4g}", remark))
    for name, perplexity in list(final.perplexity.items())[:1] if final else []:
        dense_perplexity = dense.perplexity.get(name) if dense else None
        remark = f"dense {dense_perplexity:.4g}" if dense_perplexity else ""
        facts.append((f"Perplexity on {name}", f"{perplexity:.4g}", remark))
    if run.batches:
        facts.append(("Tokens searched", f"{run.batches[-1].tokens_spent:,.0f}", f"{len(run.batches)} minibatches"))
    if run.seconds:
        facts.append(("Time", duration(sum(run.seconds.values())), "all stages"))
    return facts


def _amount(run: Run, value: float) -> str:
    """A value of the budget's metric, with its unit."""
    if run.metric in ("size", "memory"):
        return f"{megabytes(value)} MB"
    if run.metric == "latency":
        return f"{1000 * value:.4g} ms"
    return f"{value:.4g} bits" if run.metric == "bits" else f"{100 * value:.4g} %"


def _remark(run: Run, part: str) -> str:
    """A remark on how much memory the same part of the dense model takes."""
    dense = run.memory.get("dense", {})
    return f"dense {megabytes(dense[part])} MB" if part in dense and part != "reserve" else ""


@dataclass(frozen=True)
class TaskScore:
    """A score of a task with its standard error. None means unknown."""

    value: float | None
    error: float | None = None


def task_rows(candidates: Mapping[str, CandidateScores]) -> list[tuple[str, list[TaskScore]]]:
    """Rows (task and metric, the scores of all candidates in order). The main metric of a task comes first."""
    keys = dict.fromkeys(
        (task, key)
        for candidate in candidates.values()
        for task, scores in candidate.tasks.items()
        for key in metric_keys(scores)
    )
    return [
        (f"{task} {short_key(key)}", [_task_score(one.tasks.get(task, {}), key) for one in candidates.values()])
        for task, key in keys
    ]


def main_scores(candidate: CandidateScores) -> dict[str, TaskScore]:
    """The main score of each task, by task and metric."""
    return {
        f"{task} {short_key(key)}": _task_score(scores, key)
        for task, scores in candidate.tasks.items()
        for key in metric_keys(scores)[:1]
    }


def _task_score(scores: Mapping[str, float], key: str) -> TaskScore:
    return TaskScore(scores.get(key), scores.get(stderr_key(key)))
