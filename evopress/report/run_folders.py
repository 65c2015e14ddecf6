"""Finds run directories."""

from pathlib import Path

RUN_FILES = (".hydra/config.yaml", "results.json", "search.jsonl", "seconds.json")
"""A folder with one of these is a run directory. `profile.json` does not count: exported checkpoints have one too."""


def is_run(folder: Path) -> bool:
    """Whether a folder is a run directory."""
    return any((folder / name).is_file() for name in RUN_FILES)


def find_runs(folder: Path) -> list[Path]:
    """`folder` itself if it is a run directory, otherwise the run directories below it, sorted by path."""
    if is_run(folder):
        return [folder]
    runs = {path.parents[len(Path(name).parts) - 1] for name in RUN_FILES for path in folder.rglob(name)}
    return sorted(run for run in runs if not runs & set(run.parents))
