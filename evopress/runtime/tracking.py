"""Trackers, which receive the metrics of a run: the contract and Weights & Biases. Only this module uses wandb."""

import logging
import netrc
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeVar
from urllib.parse import urlparse

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as checked_dataclass

log = logging.getLogger(__name__)

T = TypeVar("T")

Metrics = Mapping[str, float]

LONGEST_UPLOAD_S = 300.0
"""The end of a run waits at most this long for W&B, which would try for hours. `wandb sync` uploads the rest later."""


class Tracker:
    """Receives the metrics and results of a run. This base class ignores them.

    Calls come in this order: `start` once; `log` at every step; `summary`, `table`, `images` and `files` with the
    results; `finish` once, also after an error.
    """

    def start(self, folder: Path, name: str, config: Mapping[str, object]) -> None:
        """`folder` is the run directory, `name` a short description of the run, `config` its whole configuration."""

    def log(self, metrics: Metrics, *, step: int) -> None:
        """Values named group/name. Every group counts its steps separately."""

    def summary(self, metrics: Metrics) -> None:
        """Final values, under names such as searched/kl/wikitext2."""

    def table(self, name: str, rows: Mapping[str, Metrics]) -> None:
        """Scores of several models, one row each; all rows have the same columns."""

    def images(self, paths: Sequence[Path]) -> None:
        """Plots, each named after its file."""

    def files(self, paths: Sequence[Path]) -> None:
        """Result files."""

    def finish(self, exit_code: int) -> None:
        """`exit_code` is 0 for a successful run."""


@checked_dataclass(kw_only=True, config=ConfigDict(extra="forbid"))
class WandB(Tracker):
    """Weights & Biases. `mode="auto"` means online if an API key is configured, otherwise offline (see `wandb sync`).

    W&B shows runs of the same `group` together; by default, the runs of a sweep form a group. A failure of the service
    is reported once and does not stop the run. Not frozen, because it holds the open W&B run.
    """

    project: str = "evopress"
    entity: str | None = None
    group: str | None = None
    mode: Literal["auto", "online", "offline"] = "auto"

    def start(self, folder: Path, name: str, config: Mapping[str, object]) -> None:
        import wandb  # takes a second to import, and is needed for this tracker only

        self._wandb = wandb
        self._run: wandb.Run | None = None
        mode = self.mode if self.mode != "auto" else "online" if _has_key() else "offline"
        if mode == "offline":
            log.info("W&B is offline; upload later with: wandb sync %s", folder / "wandb" / "offline-run-*")
        self._run = self._guarded(
            lambda: wandb.init(
                project=self.project,
                entity=self.entity,
                group=self.group or _sweep_of(folder),
                name=name,
                id=_run_id(folder),
                resume="allow" if mode == "online" else None,
                dir=folder,
                config=dict(config),
                mode=mode,
                settings=wandb.Settings(
                    silent=True, console="off", finish_timeout=LONGEST_UPLOAD_S, finish_timeout_raises=True
                ),
            )
        )
        self._guarded(lambda: self._run and self._run.define_metric("search/question"))
        self._guarded(lambda: self._run and self._run.define_metric("search/*", step_metric="search/question"))

    def log(self, metrics: Metrics, *, step: int) -> None:
        self._guarded(lambda: self._run and self._run.log({"search/question": step, **metrics}))

    def summary(self, metrics: Metrics) -> None:
        self._guarded(lambda: self._run and self._run.summary.update(dict(metrics)))

    def table(self, name: str, rows: Mapping[str, Metrics]) -> None:
        def upload() -> None:
            if self._run:
                columns = list(next(iter(rows.values())))
                data = [[row, *(scores[column] for column in columns)] for row, scores in rows.items()]
                self._run.log({name: self._wandb.Table(columns=["model", *columns], data=data)})

        self._guarded(upload)

    def images(self, paths: Sequence[Path]) -> None:
        def upload() -> None:
            if self._run:
                self._run.log({f"plots/{path.stem}": self._wandb.Image(str(path)) for path in paths})

        self._guarded(upload)

    def files(self, paths: Sequence[Path]) -> None:
        def upload() -> None:
            if self._run:
                artifact = self._wandb.Artifact(f"{self._run.id}-results", type="result")
                for path in paths:
                    artifact.add_file(str(path))
                self._run.log_artifact(artifact)

        self._guarded(upload)

    def finish(self, exit_code: int) -> None:
        self._guarded(lambda: self._run and self._run.finish(exit_code=exit_code))

    def _guarded(self, action: Callable[[], T]) -> T | None:
        """Call `action`. If it fails, log that and send nothing more: W&B must never stop a run."""
        try:
            return action()
        except Exception as error:
            reason = " ".join(str(error).split())
            log.warning("W&B failed (%s); nothing more is sent, metrics.jsonl continues", reason)
            self._run = None
            return None


class Trackers(Tracker):
    """Passes every call on to several trackers."""

    def __init__(self, *trackers: Tracker):
        self.trackers = trackers

    def start(self, folder: Path, name: str, config: Mapping[str, object]) -> None:
        for tracker in self.trackers:
            tracker.start(folder, name, config)

    def log(self, metrics: Metrics, *, step: int) -> None:
        for tracker in self.trackers:
            tracker.log(metrics, step=step)

    def summary(self, metrics: Metrics) -> None:
        for tracker in self.trackers:
            tracker.summary(metrics)

    def table(self, name: str, rows: Mapping[str, Metrics]) -> None:
        for tracker in self.trackers:
            tracker.table(name, rows)

    def images(self, paths: Sequence[Path]) -> None:
        for tracker in self.trackers:
            tracker.images(paths)

    def files(self, paths: Sequence[Path]) -> None:
        for tracker in self.trackers:
            tracker.files(paths)

    def finish(self, exit_code: int) -> None:
        for tracker in self.trackers:
            tracker.finish(exit_code)


def _has_key() -> bool:
    """Whether the environment or the netrc file has a W&B API key."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return netrc.netrc().authenticators(host or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _sweep_of(folder: Path) -> str | None:
    """The name of the sweep that a run directory belongs to; None if it belongs to none."""
    return folder.parent.name if folder.parent.parent.name == "sweeps" else None


def _run_id(folder: Path) -> str:
    """An id from the end of the path, so that a resumed run has the same id."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", "-".join(folder.resolve().parts[1:][-3:]))[-120:]
