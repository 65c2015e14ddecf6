"""Estimates of time, memory and disk for models of 7B and 70B weights, as `stages=[plan]` gives them.

    python experiments/planning/measure.py

Needs no weights: the configurations of the two models are written down here. Writes `results.json` next to this file.
"""

import json
import logging
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory

from hydra import compose, initialize_config_dir
from transformers import LlamaConfig, MistralConfig, PretrainedConfig

from evopress.config import CONFIG_FOLDER, build_job
from evopress.planning.estimate import ResourceEstimate, StageEstimate
from evopress.planning.memory import memory_of_every_stage
from evopress.planning.planned_run import PlannedRun, plan_run
from evopress.planning.stages import estimate_resources
from evopress.planning.work import cost_of

log = logging.getLogger("planning")

RESULTS = Path(__file__).parent / "results.json"
OPERATIONS_PER_S, FLOAT32_OPERATIONS_PER_S, BYTES_PER_S = 1e14, 1e13, 2e9
"""What the assumed device computes in the model's type and in float32, and what it reads, decodes or writes."""

MODELS: dict[str, PretrainedConfig] = {
    "Mistral-7B": MistralConfig(vocab_size=32768, sliding_window=None),  # the other defaults are those of the model
    "Llama-3-70B": LlamaConfig(
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=128256,
    ),
}
STATES_GB = 16
"""Enough for the states of all candidates of a generation of 7B."""

SEARCHES = ("guided_long", "super_fast", "evolution")


def planned(folder: Path, search: str, *, offload: bool) -> PlannedRun:
    overrides = [
        "model=hf",
        f"model.path={folder}",
        "model.dtype=bfloat16",
        "model.device=cpu",
        f"model.offload={offload}",
        "compress=gptq",
        "budget=3bit",
        "data=fineweb_edu",
        f"evaluator.states_gb={STATES_GB}",
        f"search={search}",
        "tune=none",
    ]
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        return plan_run(build_job(compose("config", overrides), folder))


def hours_of(stage: StageEstimate, run: PlannedRun) -> float:
    """The hours of a stage on the assumed device."""
    seconds = 0.0
    for operation, times in stage.work.items():
        cost = cost_of(operation, run)
        operations_s = cost.in_model / OPERATIONS_PER_S + cost.in_float32 / FLOAT32_OPERATIONS_PER_S
        seconds += times * (operations_s + cost.num_bytes / BYTES_PER_S)
    return seconds / 3600


def rows_of(model: str, search: str, folder: Path) -> tuple[list[dict], ResourceEstimate]:
    """A row for each stage, of which only the search depends on the search method; and the whole estimate."""
    run = planned(folder, search, offload=False)
    estimate = estimate_resources(run)
    saved_bytes = model_bytes(run) - model_bytes(planned(folder, search, offload=True))
    rows = [
        {
            "model": model,
            "stage": f"search={search}" if stage.name == "search" else stage.name,
            "tokens": round(stage.tokens),
            "hours": round(hours_of(stage, run), 4),
            "memory_bytes": stage.memory_bytes,
            "memory_bytes_with_offload": stage.memory_bytes - saved_bytes,
        }
        for stage in estimate.stages
    ]
    return rows, estimate


def model_bytes(run: PlannedRun) -> int:
    """What every stage holds: the model, the libraries and a batch."""
    return sum(item.size_bytes for item in memory_of_every_stage(run))


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    stages: dict[tuple[str, str], dict] = {}
    models: dict[str, dict[str, int]] = {}
    for model, config in MODELS.items():
        with TemporaryDirectory() as folder:
            config.save_pretrained(folder)
            for search in SEARCHES:
                rows, estimate = rows_of(model, search, Path(folder))
                stages |= {(model, row["stage"]): row for row in rows}
        sizes = ("num_weights", "num_units", "database_bytes", "states_bytes")
        models[model] = {name: getattr(estimate, name) for name in sizes}
    speeds = {
        "operations_per_second": OPERATIONS_PER_S,
        "float32_operations_per_second": FLOAT32_OPERATIONS_PER_S,
        "bytes_per_second": BYTES_PER_S,
    }
    results = {"date": date.today().isoformat(), **speeds, "models": models, "stages": list(stages.values())}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
