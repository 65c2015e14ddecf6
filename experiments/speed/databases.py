"""Builds whole databases and measures where the time goes, and what packed levels cost to write, read and decode."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from evopress.compressors.base import Compressor
from evopress.compressors.hessian import RunningHessian
from evopress.database.build import BatchLimits, build_database
from evopress.database.store import BlockLevels, Database
from evopress.models.language_model import LanguageModel
from evopress.weights.base import CompressedWeight
from experiments.speed import setting
from experiments.speed.timing import RUNS, Phase, once, seconds, time_inside


@dataclass(frozen=True)
class Built:
    """A database with the seconds it took, in total and by part. Writing overlaps the solves of the next block."""

    database: Database
    seconds: float
    num_tokens: int
    spent: dict[str, float]
    dense_bytes: int
    all_seconds: tuple[float, ...] = ()

    def as_dict(self) -> dict[str, object]:
        return {
            "seconds": self.seconds,
            "seconds_of_each": self.all_seconds,
            "tokens": self.num_tokens,
            "parts": self.spent,
            "bytes": self.database.size_bytes,
            "share_of_dense_levels": self.database.size_bytes / self.dense_bytes,
        }


def built(lm: LanguageModel, compressor: Compressor, windows: Tensor, folder: Path) -> Built:
    """The build with the median total time, of several that start from nothing."""
    runs = []
    for _ in range(RUNS):
        shutil.rmtree(setting.database(compressor, folder).folder, ignore_errors=True)
        runs.append(_built(lm, compressor, windows, setting.database(compressor, folder)))
    middle = sorted(runs, key=lambda run: run.seconds)[len(runs) // 2]
    return replace(middle, database=runs[-1].database, all_seconds=tuple(run.seconds for run in runs))


def _built(lm: LanguageModel, compressor: Compressor, windows: Tensor, database: Database) -> Built:
    methods = {
        "blocks": (LanguageModel, "run_block"),
        "Hessians": (RunningHessian, "update"),
        "solves": (type(compressor), "compress"),
        "disk": (Database, "put"),
    }
    with time_inside(**methods) as spent:
        total = once(lambda: build_database(lm, compressor, windows, database, limits=BatchLimits(batch_tokens=4096)))
    parts = {**spent, "forward": spent["blocks"] - spent["Hessians"]}
    parts["rest"] = total - parts["blocks"] - parts["solves"]
    del parts["blocks"]
    packed = levels_of(database)
    dense = sum(2 * weight.shape[0] * weight.shape[1] for weight in packed) * lm.num_blocks
    return Built(database, total, windows.numel(), parts, dense)


def levels_of(database: Database) -> list[CompressedWeight]:
    """All levels of all layers of the first block."""
    with_levels = {name: len(errors) for name, errors in database.blocks[0]["errors"].items()}
    return [database.read(0, name, level) for name, count in with_levels.items() for level in range(count)]


def reopened(database: Database) -> Database:
    """The database without the files that are open, so that its levels are read and checked again."""
    return replace(database, _files={})


def phases(lm: LanguageModel, name: str, of: Built, top: dict[str, float], *, factors: float) -> list[Phase]:
    """Rows of the table for one build, and for writing and reading its levels.

    `factors` are the GFLOP of one block's solves. The forward passes are two per block, dense and propagated, less the
    last; half of a Hessian is needed, as it is symmetric.
    """
    model_ceiling, tokens = top[str(lm.dtype).removeprefix("torch.")], of.num_tokens
    widths = [lm.linear(0, group[0]).weight.shape[1] for group in lm.layer_groups(0)]
    hessians = sum(tokens * cols * (cols + 1) for cols in widths) * lm.num_blocks / 1e9
    forward = block_gflop(lm, tokens, 512) * (2 * lm.num_blocks - 1)
    packed = levels_of(of.database)
    packed_gb = of.database.blocks[0]["bytes"] / 1e9
    dense_gb = sum(lm.dtype.itemsize * weight.shape[0] * weight.shape[1] for weight in packed) / 1e9
    decode = seconds(lambda: [weight.dense(lm.dtype) for weight in packed])
    rows = [
        Phase("forward", of.spent["forward"], forward, "GFLOP", model_ceiling),
        Phase("Hessians", of.spent["Hessians"], hessians, "GFLOP", model_ceiling),
        Phase("solves", of.spent["solves"], factors * lm.num_blocks, "GFLOP", top["float32"]),
        Phase("write, one block", seconds(rewrite(of.database)), packed_gb, "GB", top["copy"] / 2),
        Phase("read, one block", seconds(lambda: levels_of(reopened(of.database))), packed_gb, "GB", top["copy"] / 2),
        Phase("decode, one block", decode, dense_gb, "GB", top["copy"] / 2),
    ]
    return [Phase(f"{name}: {row.name}", row.seconds, row.work, row.unit, row.ceiling) for row in rows]


def rewrite(database: Database) -> Callable[[], None]:
    """A function that writes the first block again."""
    entry = database.blocks[0]
    levels = {
        name: [database.read(0, name, level) for level in range(len(errors))]
        for name, errors in entry["errors"].items()
    }
    return lambda: database.put(0, BlockLevels(levels, entry["errors"], tuple(entry["notes"])))


def block_gflop(lm: LanguageModel, num_tokens: int, window: int) -> float:
    """GFLOP of one block's forward pass: two per weight and token, and causal attention."""
    weights = sum(lm.linear(0, local).weight.numel() for local in lm.layers(0))
    return (2 * weights * num_tokens + 4 * num_tokens * window * lm.hidden_size / 2) / 1e9


def solve_gflop(lm: LanguageModel, num_levels: int) -> float:
    """GFLOP of one block's solves: factors of the inverse Hessians, sweeps of all lanes, and energies of the layers."""
    total = 0.0
    for group in lm.layer_groups(0):
        rows = sum(lm.linear(0, local).weight.shape[0] for local in group)
        cols = lm.linear(0, group[0]).weight.shape[1]
        total += 2 * cols**3 / 3 + rows * num_levels * cols**2 + 2 * rows * cols**2
    return total / 1e9
