"""Compares numbers of steps, windows and distances of learnt rounding by the held-out loss of a few blocks.

python experiments/tuning/rounding_steps.py FOLDER option ...

The options are those of `python -m evopress.run`. Results go to FOLDER/rounding_steps.json. The blocks before and
between keep their codes, and the blocks themselves take the codes of the first recipe.
"""

import json
import logging
import sys
from dataclasses import asdict, replace
from pathlib import Path

from hydra import compose, initialize_config_dir

from evopress.config import CONFIG_FOLDER, build_job
from evopress.preparation import load_inputs, prepare_context
from evopress.search.start_profiles import uniform_profile
from evopress.tuning.block_rounding import learn_block
from evopress.tuning.calibration_pair import calibration_pair
from evopress.tuning.settings import Tuning
from evopress.tuning.task import TuningTask

log = logging.getLogger("rounding steps")

BLOCKS = (1, 9, 19)
SETTINGS = Tuning(resolve="signround", excerpt=512)
RECIPES = {
    "40 steps of 1 window": replace(SETTINGS, resolve_steps=40, resolve_windows=1),
    "20 steps of 2": replace(SETTINGS, resolve_steps=20, resolve_windows=2),
    "40 steps of 2": replace(SETTINGS, resolve_steps=40, resolve_windows=2),
    "60 steps of 1": replace(SETTINGS, resolve_steps=60, resolve_windows=1),
    "80 steps of 1": replace(SETTINGS, resolve_steps=80, resolve_windows=1),
    "40 steps of 1, distance 0.1": replace(SETTINGS, resolve_steps=40, resolve_windows=1, resolve_distance=0.1),
    "40 steps of 1, ranges fixed": replace(SETTINGS, resolve_steps=40, resolve_windows=1, resolve_range_distance=0),
}

Losses = dict[str, tuple[float, float]]
"""The held-out loss of a block before and after, by recipe."""


def measured(folder: Path, options: list[str]) -> dict[int, Losses]:
    """The losses of all recipes in each of `BLOCKS`, on the uniform profile."""
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        job = build_job(compose("config", options), folder)
    context = prepare_context(job, *load_inputs(job))
    profile = uniform_profile(context.space, job.budget)
    if profile is None:
        raise ValueError("no uniform profile meets the budget")
    all_windows = replace(SETTINGS, resolve_steps=1000)
    states = calibration_pair(TuningTask(all_windows, context, profile, folder / "rounding.safetensors", identity={}))
    losses: dict[int, Losses] = {}
    for block in range(max(BLOCKS) + 1):
        states.advance_dense(block)
        weights = states.stored_weights(block)
        if block in BLOCKS:
            block_task = states.block_task(block)
            learnt = {name: learn_block(block_task, weights, recipe) for name, recipe in RECIPES.items()}
            losses[block] = {name: (each.loss_before, each.loss_after) for name, each in learnt.items()}
            log.info("block %d: %s", block, losses[block])
            weights = next(iter(learnt.values())).weights
        states.advance_compressed(block, weights)
    return losses


def main(folder: Path, options: list[str]) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "options": options,
        "recipes": {name: asdict(recipe) for name, recipe in RECIPES.items()},
        "losses": measured(folder, options),
    }
    (folder / "rounding_steps.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
