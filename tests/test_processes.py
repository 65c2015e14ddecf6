"""Several processes make the same decisions as one, share the work, and end together."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from evopress.config import CONFIG_FOLDER, build_job
from evopress.pipeline import run_job
from evopress.runtime import distributed

PROJECT = Path(__file__).parents[1]
SETTINGS = [
    "data.calibration_tokens=8192",
    "data.search_tokens=2048",
    "data.validation_tokens=512",
    "data.test_tokens=512",
    "search.generations=2",
    "evaluator.batch_tokens=1024",
    "stages=[database,search,tune]",
    "tune.tokens=1024",
    "tune.windows=2",
    "tune.checks=2",
    "tune.resolve=signround",
    "tune.resolve_steps=3",
]
WORKER = """
import atexit, os, sys
from pathlib import Path
from evopress.compressors.gptq import GPTQ
from evopress.database.calibration import CalibrationStates
from evopress.evaluation.evaluator import Evaluator
from evopress.run import main

folder, rank = Path(sys.argv.pop(1)), os.environ["RANK"]
(folder / f"pid-{rank}").write_text(str(os.getpid()))
start, compress, states = Evaluator.__init__, GPTQ.compress, CalibrationStates.__init__

def counted_start(self, lm, space, weights, settings, dense=None, **others):
    start(self, lm, space, weights, settings, dense=dense, **others)
    if weights and not dense:
        atexit.register(lambda: (folder / f"block-tokens-{rank}").write_text(str(self.block_tokens)))

def counted_compress(self, group):
    with open(folder / f"groups-{rank}", "a") as file:
        print(" ".join(group.names), file=file)
    return compress(self, group)

def counted_states(self, **arguments):
    states(self, **arguments)
    number = sum(len(batch) for batches in self.batches.values() for batch in batches)
    (folder / f"windows-{rank}").write_text(str(number))

Evaluator.__init__, GPTQ.compress, CalibrationStates.__init__ = counted_start, counted_compress, counted_states
main()
"""
"""The program, plus records of what every process does."""


TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--monitor-interval=0.1", "--nproc-per-node"]
ACCELERATE = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines=1", "--mixed_precision=no"]
ACCELERATE += ["--dynamo_backend=no", "--main_process_port=0", "--monitor_interval=0.1", "--num_processes"]
"""With --cpu, accelerate starts only one process; with --multi_gpu, it starts several, even on a CPU."""


def start(number: int, folder: Path, *arguments: str, launcher: list[str] = TORCHRUN) -> subprocess.Popen:
    (folder / "worker.py").write_text(WORKER)
    folders = [f"outputs={folder}", f"hydra.run.dir={folder}/run", *SETTINGS]
    return subprocess.Popen(
        [sys.executable, *launcher, str(number), str(folder / "worker.py"), str(folder), *folders, *arguments],
        cwd=PROJECT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run_alone(folder: Path, *arguments: str) -> None:
    """Run in this process, which has already imported the libraries, with one thread like the other processes."""
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        cfg = compose("config", [f"outputs={folder}", *SETTINGS, *arguments])
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run_job(build_job(cfg, folder / "run"))
    finally:
        torch.set_num_threads(num_threads)


def decisions(folder: Path) -> list[dict]:
    lines = (folder / "run" / "search.jsonl").read_text().splitlines()[1:]
    return [json.loads(line) for line in lines]


def database(folder: Path) -> Path:
    (database_folder,) = folder.glob("databases/tiny/*")
    return database_folder


def manifest(folder: Path) -> dict:
    return json.loads((database(folder) / "manifest.json").read_text())


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    run_alone(folder)
    return folder


def with_database_of(other: Path, folder: Path) -> None:
    (folder / "databases").symlink_to(other / "databases")


@pytest.mark.slow
def test_three_processes_write_the_same_bytes_as_one_and_share_the_work(alone, tmp_path):
    output, _ = (process := start(3, tmp_path)).communicate(timeout=600)
    assert process.returncode == 0, output
    assert output.count("building database") == output.count("searched profile: 3 bits") == 1  # by the first one
    assert_same_bytes(alone, tmp_path)
    batches = [line for line in decisions(alone) if line["ask"] == "batch"]
    total = sum(8 * (line["token_equivalents"] - min(line["tokens"], 2048)) for line in batches)
    shares = [int((tmp_path / f"block-tokens-{rank}").read_text()) for rank in range(3)]
    assert total <= sum(shares) <= 1.2 * total  # several processes may run a common prefix
    assert max(shares) <= 0.5 * total
    windows = [int((tmp_path / f"windows-{rank}").read_text()) for rank in range(3)]
    assert sum(windows) == 32 and max(windows) <= 12
    solved = [(tmp_path / f"groups-{rank}").read_text().splitlines() for rank in range(3)]
    assert sum(map(len, solved)) == len(set().union(*solved)) == 4 * 8 and max(map(len, solved)) == 2 * 8


def assert_same_bytes(alone: Path, folder: Path) -> None:
    names = ["search.jsonl", "profile.txt", "profile.json", "tuned.rounding.safetensors", "tuned.safetensors"]
    names = [f"run/{name}" for name in names]
    names += [str(path.relative_to(alone)) for path in sorted(alone.glob("databases/*/*/*.*"))]
    assert len(names) == 5 + 8 + 1
    assert [name for name in names if (folder / name).read_bytes() != (alone / name).read_bytes()] == []


def killed_when(folder: Path, process: subprocess.Popen, seen: Iterator[bool]) -> None:
    """Kill the second of two processes at the first True. The launcher must then end the other, with an error."""
    deadline = time.monotonic() + 600
    while not next(seen):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(int((folder / "pid-1").read_text()), signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode != 0
    with pytest.raises(ProcessLookupError):
        os.kill(int((folder / "pid-0").read_text()), 0)


@pytest.mark.slow
@pytest.mark.counts("faults")
def test_a_search_that_lost_a_process_is_resumed_by_one(alone, tmp_path):
    with_database_of(alone, tmp_path)
    path = tmp_path / "run" / "search.jsonl"
    process = start(2, tmp_path, launcher=ACCELERATE)
    killed_when(tmp_path, process, (path.exists() and path.read_bytes().count(b"\n") > 2 for _ in iter(int, 1)))
    by_two = path.read_bytes()
    assert not (tmp_path / "run" / "profile.txt").exists()
    run_alone(tmp_path)
    assert path.read_bytes().startswith(by_two)
    assert_same_bytes(alone, tmp_path)


@pytest.mark.slow
@pytest.mark.counts("faults")
def test_a_build_that_lost_a_process_is_resumed_by_one(alone, tmp_path):
    process = start(2, tmp_path, "stages=[database]")
    killed_when(tmp_path, process, (bool(list(tmp_path.glob("databases/*/*/manifest.json"))) for _ in iter(int, 1)))
    solved = [set((tmp_path / f"groups-{rank}").read_text().splitlines()) for rank in range(2)]
    assert not solved[0] & solved[1]
    assert len({line for line in solved[0] | solved[1] if "layers.0." in line}) == 4
    built = manifest(tmp_path)["blocks"]
    assert 0 < len(built) < 8
    run_alone(tmp_path)
    assert_same_bytes(alone, tmp_path)


def test_a_single_process_does_all_the_work():
    assert (distributed.rank(), distributed.world_size(), distributed.is_first()) == (0, 1, True)
    assert distributed.share([1, 2, 3]) == [1, 2, 3]
    assert distributed.gather(5) == distributed.collect(5) == [5]
    assert distributed.from_first(lambda: 7) == distributed.first_then_others(lambda: 7) == 7


@pytest.mark.parametrize("number", [1, 2, 3, 5])
def test_shares_cover_all_items_in_order_and_have_almost_equal_sizes(number, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: number)
    shares = []
    for rank in range(number):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append(distributed.share(range(7)))
    assert [item for part in shares for item in part] == list(range(7))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
