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
from evopress.planning.estimate import ResourceEstimate
from evopress.planning.stages import estimate_resources

log = logging.getLogger("planning")

RESULTS = Path(__file__).parent / "results.json"
SPEED, SOLVER_SPEED = 1e14, 1e13
"""Operations per second of the assumed device, in the model's type and in float32."""

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
SEARCHES = ("guided", "super_fast", "evolution")


def estimate(folder: Path, search: str, *, offload: bool) -> ResourceEstimate:
    overrides = [
        "model=hf",
        f"model.path={folder}",
        "model.dtype=bfloat16",
        "model.device=cpu",
        f"model.offload={offload}",
        "compress=gptq",
        "budget=3bit",
        "data=fineweb_edu",
        f"search={search}",
    ]
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        return estimate_resources(build_job(compose("config", overrides), folder))


def rows_of(model: str, search: str, resident: ResourceEstimate, offloaded: ResourceEstimate) -> list[dict]:
    """A row for each stage. Only the search depends on the search method."""
    rows = []
    for stage, offloaded_stage in zip(resident.stages, offloaded.stages, strict=True):
        hours = (stage.operations / SPEED + stage.solver_operations / SOLVER_SPEED) / 3600
        rows.append(
            {
                "model": model,
                "stage": f"search={search}" if stage.name == "search" else stage.name,
                "tokens": round(stage.tokens),
                "hours": round(hours, 4),
                "memory_bytes": stage.memory_bytes,
                "memory_bytes_with_offload": offloaded_stage.memory_bytes,
            }
        )
    return rows


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    stages: dict[tuple[str, str], dict] = {}
    models: dict[str, dict[str, int]] = {}
    for model, config in MODELS.items():
        with TemporaryDirectory() as folder:
            config.save_pretrained(folder)
            for search in SEARCHES:
                resident, offloaded = (estimate(Path(folder), search, offload=offload) for offload in (False, True))
                stages |= {(model, row["stage"]): row for row in rows_of(model, search, resident, offloaded)}
        sizes = ("num_weights", "num_units", "database_bytes", "states_bytes")
        models[model] = {name: getattr(resident, name) for name in sizes}
    speeds = {"operations_per_second": SPEED, "solver_operations_per_second": SOLVER_SPEED}
    results = {"date": date.today().isoformat(), **speeds, "models": models, "stages": list(stages.values())}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
