"""The operations of a run on levels and files. They call the same code as the run."""

import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from evopress.compressors.base import Compressor, LayerGroup
from evopress.database.cache import DecodedLevels
from evopress.database.store import BlockLevels, Database
from evopress.planning.sample import Sample, Timeable
from evopress.planning.work import Operation
from evopress.weights.base import CompressedWeight

FILE_BYTES = 2**26


@dataclass(frozen=True)
class LevelOperations:
    """`folder` is on the disk of the database. `levels` holds the levels of all layers that were solved so far."""

    sample: Sample
    folder: Path
    levels: dict[str, list[CompressedWeight]] = field(default_factory=dict)

    @cached_property
    def compressor(self) -> Compressor:
        compressor = self.sample.run.job.compress
        assert isinstance(compressor, Compressor)
        return compressor.for_hidden_size(self.sample.lm.hidden_size)

    def solve(self, operation: Operation) -> Timeable:
        """Solves all levels of a group of layers."""
        device, cols = self.sample.lm.device, operation.cols
        weights = tuple(torch.randn(rows, cols, device=device) for rows in operation.rows)
        hessian = torch.eye(cols, device=device) + 0.5 if self.compressor.needs_hessian else None
        names = tuple(f"{operation.rows}.{cols}.{index}" for index in range(len(weights)))

        def call() -> None:
            group = self.compressor.compress_sample(LayerGroup(names, weights, hessian))
            self.levels.update(zip(names, group.levels, strict=True))

        return Timeable(call)

    def decode(self, operation: Operation) -> Timeable:
        """Reads the levels that were solved so far from a database, every byte of them, and decodes them."""
        database = Database.open(self.folder, "sample", {})
        database.put(0, BlockLevels(self.levels, {name: [0.0] * len(levels) for name, levels in self.levels.items()}))
        lm = self.sample.lm

        def call() -> None:
            decoded = DecodedLevels(database, limit_bytes=1, dtype=lm.dtype, device=lm.device)
            for name, levels in self.levels.items():
                for level in range(len(levels)):
                    decoded.get(0, name, level)

        return Timeable(call, sum(weight.size_bytes for levels in self.levels.values() for weight in levels))

    def states(self, operation: Operation) -> Timeable:
        """Writes a file and reads it again."""
        path = self.folder / "states"

        def call() -> None:
            with open(path, "wb") as file:
                file.write(bytes(FILE_BYTES))
                os.fsync(file.fileno())
            path.read_bytes()

        return Timeable(call, 2 * FILE_BYTES)
