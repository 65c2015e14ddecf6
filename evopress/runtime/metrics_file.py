"""`metrics.jsonl`, with all metrics of a run, one JSON object per line."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from evopress.runtime.files import path_in_errors
from evopress.runtime.tracking import Metrics, Tracker


class JsonLines(Tracker):
    """Appends to `metrics.jsonl` in the run directory, one object per call."""

    def start(self, folder: Path, name: str, config: Mapping[str, object]) -> None:
        self.path = folder / "metrics.jsonl"
        if self.path.exists():
            content = self.path.read_bytes()
            complete_lines = content[: content.rfind(b"\n") + 1]  # a kill may have left an incomplete last line
            if complete_lines != content:
                os.truncate(self.path, len(complete_lines))

    def log(self, metrics: Metrics, *, step: int) -> None:
        self._append({"step": step, **metrics})

    def summary(self, metrics: Metrics) -> None:
        self._append({"summary": dict(metrics)})

    def _append(self, entry: Mapping[str, object]) -> None:
        with path_in_errors(self.path), open(self.path, "a") as file:
            file.write(json.dumps(entry) + "\n")
