"""Measures the memory of a search with different numbers of levels, each in a separate process."""

import json
import subprocess
import sys
from pathlib import Path
from random import Random

from evopress.data.splits import load_splits
from evopress.database.cache import DecodedLevels
from evopress.evaluation.evaluator import Evaluator, EvaluatorSettings
from evopress.models.loading import load_model
from evopress.runtime import memory
from evopress.space.build import layer_space
from evopress.space.settings import SpaceSettings
from experiments.speed import setting

CACHE_GB = 0.1
PROFILES = 8


def peaks(folder: Path, widths: tuple[int, ...]) -> dict[str, object]:
    """Resident memory while mixtures of the first two, three, … `widths` are evaluated; the database is in `folder`."""
    rows = []
    for count in range(2, len(widths) + 1):
        command = [sys.executable, "-m", "experiments.speed.memory", str(folder), json.dumps(widths[:count])]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    return {"cache_gb": CACHE_GB, "profiles": PROFILES, "rows": rows}


def main() -> None:
    folder, widths = Path(sys.argv[1]), tuple(json.loads(sys.argv[2]))
    lm = load_model(setting.MODEL, setting.CACHE)
    tokens = load_splits(setting.DATA, lm.tokenizer, setting.CACHE).search[:1]
    compressor = setting.gptq(widths)
    space, settings = layer_space(lm, compressor, SpaceSettings()), EvaluatorSettings(cache_gb=CACHE_GB)
    database, limit = setting.database(compressor, folder), int(CACHE_GB * 1e9)
    weights = DecodedLevels(database, limit_bytes=limit, dtype=lm.dtype, device=lm.device)
    evaluator, rng = Evaluator(lm, space, weights, settings), Random(0)
    profiles = [tuple(rng.randrange(len(widths)) for _ in space.units) for _ in range(PROFILES)]
    evaluator.evaluate(profiles[:1], tokens)
    memory.start_peak()
    evaluator.evaluate(profiles, tokens)
    weights_of = [lm.linear(block, local).weight for block in range(lm.num_blocks) for local in lm.layers(block)]
    dense = len(widths) * sum(weight.nbytes for weight in weights_of)
    print(json.dumps({"levels": len(widths), "peak_bytes": memory.peak_bytes(), "all_levels_bytes": dense}))


if __name__ == "__main__":
    main()
