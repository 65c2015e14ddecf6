"""Time and peak memory of the stages of a run."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evopress.runtime import distributed, memory, signals
from evopress.runtime.checksums import read_json_if_intact, with_checksum
from evopress.runtime.json_files import write_json


class Clock:
    """Seconds and peak memory per stage. Seconds are stored in a file, so a resumed run adds to earlier attempts."""

    def __init__(self, path: Path):
        self.path = path
        self.seconds: dict[str, float] = read_json_if_intact(path)
        self.peak_memory_bytes: dict[str, int] = {}
        self._started: dict[str, float] = {}

    @property
    def measurements(self) -> dict[str, object]:
        """The measurements in the form of `results.json`."""
        return {"seconds": self.seconds, "peak_memory_bytes": self.peak_memory_bytes}

    def spent(self, name: str) -> float:
        """The seconds of a stage until now: those of earlier attempts, and of this one if it is running."""
        running = time.monotonic() - self._started[name] if name in self._started else 0.0
        return self.seconds.get(name, 0.0) + running

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure the body as stage `name`, even if it fails. Raises KeyboardInterrupt after a signal."""
        signals.raise_if_interrupted()
        started = self._started[name] = time.monotonic()
        memory.start_peak()
        try:
            yield
        finally:
            del self._started[name]
            self.peak_memory_bytes[name] = memory.peak_bytes()
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.monotonic() - started, 2)
            if distributed.is_first():
                write_json(self.path, with_checksum(self.seconds))
