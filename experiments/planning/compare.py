"""Compares what `stages=[plan]` says of the demo with a run of it: seconds, memory and disk.

    OMP_NUM_THREADS=1 python experiments/planning/compare.py

Seconds are those of the processor, for the plan and for the run, because other programs on the machine change them
less than the time that passes. Writes `smollm2.json` next to this file.
"""

import json
import logging
import time
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import torch
from hydra import compose, initialize_config_dir

from evopress.config import CONFIG_FOLDER, build_job
from evopress.job import Job
from evopress.pipeline import run_job
from evopress.planning import speed
from evopress.planning.planned_run import plan_run
from evopress.planning.render import seconds_of
from evopress.planning.stages import estimate_resources
from evopress.runtime import clock

RECORD = Path(__file__).parent / "smollm2.json"
DEMO = ["model=smollm2", "compress=gptq", "budget=3bit"]


def planned(job: Job) -> dict[str, dict[str, float]]:
    """Seconds and gigabytes of memory of each stage, and the megabytes of the database."""
    run = plan_run(job)
    estimate = estimate_resources(run)
    operations = {operation for stage in estimate.stages for operation in stage.work}
    seconds = speed.measure_seconds(run, operations)
    return {
        "seconds": {stage.name: seconds_of(stage, seconds) for stage in estimate.stages},
        "memory_gb": {stage.name: stage.memory_bytes / 1e9 for stage in estimate.stages},
        "megabytes": {"database": estimate.database_bytes / 1e6},
    }


def measured(job: Job) -> dict[str, dict[str, float]]:
    """The same of a run."""
    run_job(job)
    results = json.loads((job.folder / "results.json").read_text())
    sizes = [path.stat().st_size for path in job.outputs.glob("databases/*/*/*.safetensors")]
    return {
        "seconds": results["seconds"],
        "memory_gb": {stage: peak / 1e9 for stage, peak in results["peak_memory_bytes"].items()},
        "megabytes": {"database": sum(sizes) / 1e6},
    }


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    speed.perf_counter = time.process_time  # type: ignore[assignment]
    clock.time = SimpleNamespace(monotonic=time.process_time)  # type: ignore[assignment]
    with TemporaryDirectory() as folder:
        with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
            job = build_job(compose("config", [*DEMO, f"outputs={folder}"]), Path(folder) / "run")
        plan, run = planned(job), measured(job)
    pairs = {
        quantity: {name: {"planned": value, "measured": run[quantity][name]} for name, value in of_stage.items()}
        for quantity, of_stage in plan.items()
    }
    about = {
        "date": date.today().isoformat(),
        "model": "SmolLM2-135M-Instruct, decoded from a Q4_1 file",
        "threads": torch.get_num_threads(),
    }
    RECORD.write_text(json.dumps({**about, **pairs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
