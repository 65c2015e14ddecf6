"""Where metrics go: nowhere, to a file of JSON lines, or to Weights & Biases. The only module that knows wandb."""

import json
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

from evopress.runtime.files import path_in_errors

log = logging.getLogger(__name__)

T = TypeVar("T")

Metrics = Mapping[str, float]

LONGEST_UPLOAD_S = 300.0
"""How long the end of a run may wait for W&B, which else tries for hours; `wandb sync` uploads the rest."""


class Tracker:
    """Receives what a run has to tell; this one ignores it.

    Called in this order: `start` once, `log` for every step; `summary`, `table`, `images` and `files` for what came of
    it; `finish` once, also after an error.
    """

    def start(self, folder: Path, name: str, config: Mapping[str, object]) -> None:
        """`folder` is the run directory, `name` says in short what the run is, `config` is all of its configuration."""

    def log(self, metrics: Metrics, *, step: int) -> None:
        """Values named group/name; every group counts its own steps."""

    def summary(self, metrics: Metrics) -> None:
        """Final values of the run."""

    def table(self, name: str, rows: Mapping[str, Metrics]) -> None:
        """Figures of several candidates; every row has the same columns."""

    def images(self, paths: Sequence[Path]) -> None:
        """Plots, named by their files."""

    def files(self, paths: Sequence[Path]) -> None:
        """Finished files that belong to the run."""

    def finish(self, exit_code: int) -> None:
        """0 for a run that ended well."""


class JsonLines(Tracker):
    """Appends to `metrics.jsonl` in the run directory, one object per call."""

    def start(self, folder: Path, name: str, config: Mapping[str, object]) -> None:
        self.path = folder / "metrics.jsonl"
        if self.path.exists():
            content = self.path.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]  # a kill may have left the last line torn
            if whole != content:
                os.truncate(self.path, len(whole))

    def log(self, metrics: Metrics, *, step: int) -> None:
        self._append({"step": step, **metrics})

    def summary(self, metrics: Metrics) -> None:
        self._append({"summary": dict(metrics)})

    def _append(self, entry: Mapping[str, object]) -> None:
        with path_in_errors(self.path), open(self.path, "a") as file:
            file.write(json.dumps(entry) + "\n")


@checked_dataclass(kw_only=True, config=ConfigDict(extra="forbid"))
class WandB(Tracker):
    """Weights & Biases. `mode: auto` is online where an API key is configured, else offline, for `wandb sync` later.

    Runs with the same `group` are shown together; without one, the runs of a sweep share the name of its folder. A
    failure of the service is reported once and does not stop the run.
    """

    project: str = "evopress"
    entity: str | None = None
    group: str | None = None
    mode: Literal["auto", "online", "offline"] = "auto"

    def start(self, folder: Path, name: str, config: Mapping[str, object]) -> None:
        import wandb  # takes a second, and most runs of the tests do without

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
                data = [[row, *(figures[column] for column in columns)] for row, figures in rows.items()]
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
        """Whatever goes wrong in the service must not cost the run; after a failure nothing more is sent."""
        try:
            return action()
        except Exception as error:
            reason = " ".join(str(error).split())
            log.warning("W&B failed (%s); nothing more is sent, metrics.jsonl goes on", reason)
            self._run = None
            return None


class Trackers(Tracker):
    """Tells several trackers."""

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
    """Whether a W&B API key is configured: in the environment or in the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return netrc.netrc().authenticators(host or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _sweep_of(folder: Path) -> str | None:
    return folder.parent.name if folder.parent.parent.name == "sweeps" else None


def _run_id(folder: Path) -> str:
    """The same for a resumed run."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", "-".join(folder.resolve().parts[1:][-3:]))[-120:]
