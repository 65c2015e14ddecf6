"""Trackers, which receive the metrics of a run: the contract and Weights & Biases. Only this module uses wandb."""

import logging
import os
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as checked_dataclass

from evopress.runtime.wandb_login import configured_mode, has_key

if TYPE_CHECKING:
    import wandb

log = logging.getLogger(__name__)

T = TypeVar("T")

Metrics = Mapping[str, float]

LONGEST_UPLOAD_S = 300.0
"""A run waits at most this long for W&B at its end. W&B would retry for hours. `wandb sync` uploads the rest later."""


LONGEST_START_S = 20.0
"""W&B has this long to start a run online, unless WANDB_INIT_TIMEOUT is set."""

STEP_METRICS = {"database": "database/block", "search": "search/question", "tune": "tune/step"}
"""The metric that counts the steps of each group of metrics in W&B."""

RUN_ID_FILE = "wandb_id.txt"
"""The file in the run directory that has the id of the W&B run."""


class Tracker:
    """Receives the metrics and results of a run. This base class ignores them.

    Calls come in this order: `check` before anything is loaded; `start` once; `log` at every step; `summary`, `table`,
    `images` and `files` with the results; `finish` once, also after an error.
    """

    def check(self) -> None:
        """Raise ValueError if the tracker cannot work with its settings. Sends nothing."""

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
    """Weights & Biases. Its environment variables, such as WANDB_PROJECT, replace settings that are null or `auto`.

    `mode="auto"` takes the value of WANDB_MODE. If that is not set, the mode is online with an API key, and offline
    without one (see `wandb sync`). W&B shows runs of the same `group` together; by default, the runs of a sweep form a
    group. A failure of the service is reported once and does not stop the run. If the run cannot be started online, it
    is recorded offline. Not frozen, because it holds the open W&B run.
    """

    project: str | None = None
    entity: str | None = None
    group: str | None = None
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"

    def check(self) -> None:
        """Raise ValueError if the run must be online and there is no API key. Only `start` notices a wrong key."""
        if self._chosen_mode() == "online" and not has_key():
            setting = "tracking.mode" if self.mode == "online" else "the environment variable WANDB_MODE"
            raise ValueError(
                f"{setting} is online, but no W&B API key is configured: run `wandb login`, set WANDB_API_KEY, or set "
                "tracking.mode=offline and upload later with `wandb sync`"
            )

    def start(self, folder: Path, name: str, config: Mapping[str, object]) -> None:
        import wandb  # takes a second to import, and is needed for this tracker only

        self._wandb = wandb
        self._run: wandb.Run | None = None
        mode = self._chosen_mode()
        if mode == "disabled":
            log.info("W&B is disabled; metrics.jsonl has all metrics")
            return
        try:
            self._run = self._opened(folder, name, config, mode)
        except Exception as error:
            if mode == "offline":
                self._report(error)
                return
            log.warning(
                "W&B could not start the run online (%s): it is recorded offline. Check the API key (wandb login) and "
                "the network",
                _one_line(error),
            )
            (folder / RUN_ID_FILE).unlink(missing_ok=True)  # the failed attempt still occupies the id
            self._run = self._guarded(lambda: self._opened(folder, name, config, "offline"))
        self._guarded(self._define_metrics)

    def _chosen_mode(self) -> str:
        return configured_mode() if self.mode == "auto" else self.mode

    def _define_metrics(self) -> None:
        for group, step_metric in STEP_METRICS.items():
            if self._run:
                self._run.define_metric(step_metric)
                self._run.define_metric(f"{group}/*", step_metric=step_metric)

    def _opened(self, folder: Path, name: str, config: Mapping[str, object], mode: str) -> "wandb.Run":
        """The W&B run of a run directory, new or continued. Logs its address."""
        wandb = self._wandb
        timeouts = {"finish_timeout": LONGEST_UPLOAD_S, "finish_timeout_raises": True}
        if "WANDB_INIT_TIMEOUT" not in os.environ:
            timeouts["init_timeout"] = LONGEST_START_S
        run = wandb.init(
            project=self.project or os.environ.get("WANDB_PROJECT") or "evopress",
            entity=self.entity,
            group=self.group or os.environ.get("WANDB_RUN_GROUP") or _sweep_of(folder),
            name=os.environ.get("WANDB_NAME") or name,
            id=os.environ.get("WANDB_RUN_ID") or _run_id(folder),
            resume="allow" if mode == "online" else None,
            dir=folder,
            config=dict(config),
            mode=mode,
            settings=wandb.Settings(silent=True, console="off", **timeouts),
        )
        if mode == "online":
            log.info("W&B shows this run at %s", run.url)
        elif mode == "offline":
            log.info("W&B is offline; upload later with: wandb sync %s", Path(run.dir).parent)
        return run

    def log(self, metrics: Metrics, *, step: int) -> None:
        step_metrics = {STEP_METRICS[group]: step for name in metrics for group in [name.partition("/")[0]]}
        self._guarded(lambda: self._run and self._run.log({**step_metrics, **metrics}))

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
        """Call `action`. If it fails, log the error and send nothing more, because W&B must never stop a run."""
        try:
            return action()
        except Exception as error:
            self._report(error)
            return None

    def _report(self, error: Exception) -> None:
        log.warning("W&B failed (%s); nothing more is sent, metrics.jsonl continues", _one_line(error))
        self._run = None


class Trackers(Tracker):
    """Passes every call to several trackers."""

    def __init__(self, *trackers: Tracker):
        self.trackers = trackers

    def check(self) -> None:
        for tracker in self.trackers:
            tracker.check()

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


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _sweep_of(folder: Path) -> str | None:
    """The name of the sweep that a run directory belongs to; None if it belongs to none."""
    return folder.parent.name if folder.parent.parent.name == "sweeps" else None


def _run_id(folder: Path) -> str:
    """A random id, so that runs on different machines do not share one. A resumed run keeps the id in its folder."""
    path = folder / RUN_ID_FILE
    if path.is_file() and re.fullmatch(r"[0-9a-f]{16}", path.read_text(encoding="utf-8").strip()):
        return path.read_text(encoding="utf-8").strip()
    run_id = secrets.token_hex(8)
    path.write_text(f"{run_id}\n", encoding="utf-8")
    return run_id
