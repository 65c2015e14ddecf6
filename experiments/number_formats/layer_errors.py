"""Measures the share of each layer's output energy that is lost by rounding to number formats, in three blocks."""

import json
import sys
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir

from evopress.compressors.base import LayerGroup
from evopress.compressors.float import Float
from evopress.config import CONFIG_FOLDER, build_job
from evopress.data.splits import load_splits
from evopress.database.calibration import embed_windows
from evopress.database.layer_groups import groups_of_block
from evopress.models.loading import load_model
from evopress.models.source import ModelSource

BLOCKS = (0, 4, 10)
LOSSY = ("fp8", "fp8_block", "int8", "nvfp4", "mxfp4")
SETTINGS = {
    "nearest": Float(levels=LOSSY, rounding="nearest", four_over_six=False),
    "gptq": Float(levels=LOSSY, four_over_six=False),
    "gptq, no order": Float(levels=LOSSY, four_over_six=False, act_order=False),
    "nearest, four over six": Float(levels=("nvfp4",), rounding="nearest"),
    "gptq, four over six": Float(levels=("nvfp4",)),
}
TEXT = ["data=pydoc", "data.window=512", "data.calibration_tokens=16384", "data.test_tokens=512"]


def measured(folder: Path) -> dict[str, dict[str, list[float]]]:
    """The errors of all layers of the blocks, by level and settings. Hessians are those of the dense model."""
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        job = build_job(compose("config", ["model=smollm2", *TEXT]), folder)
    assert isinstance(job.model, ModelSource)
    lm = load_model(job.model, folder)
    splits = load_splits(job.data, lm.tokenizer, folder)
    states = embed_windows(lm, splits.calibration, batch_tokens=4096, states_gb=4, folder=folder, with_weights=True)
    errors: dict[str, dict[str, list[float]]] = {name: {} for name in LOSSY}
    for block in range(max(BLOCKS) + 1):
        hessians = states.hessians(block)
        for names in groups_of_block(lm, block) if block in BLOCKS else ():
            weights = tuple(lm.model.get_submodule(name).get_parameter("weight").detach().float() for name in names)
            group = LayerGroup(names, weights, hessians[names].result())
            for setting, compressor in SETTINGS.items():
                labels = [level.label for level in compressor.levels(group.shapes[0])]
                for of_layer in compressor.compress(group).errors:
                    for label, error in zip(labels, of_layer, strict=True):
                        errors[label].setdefault(setting, []).append(error)
        states.advance(block, {})
    return errors


@torch.no_grad()
def main(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(measured(path.parent), indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
