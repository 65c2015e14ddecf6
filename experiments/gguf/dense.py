"""Writes the dense model as a GGUF file of 16-bit floats, which llama.cpp quantises and compares with.

python experiments/gguf/dense.py MODEL_FOLDER FOLDER
"""

import sys
from pathlib import Path

import torch

from evopress.export import SearchedModel
from evopress.export.formats.gguf import GGUFFile
from evopress.models.loading import load_model
from evopress.models.source import ModelSource
from evopress.space.units import Space


def main(model: Path, folder: Path) -> None:
    lm = load_model(
        ModelSource(name=model.name, path=str(model), dtype="bfloat16", device="cpu"), Path("outputs/cache")
    )
    folder.mkdir(parents=True, exist_ok=True)
    GGUFFile("smollm").write(SearchedModel(lm, Space(()), ()), folder, dtype=torch.bfloat16)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
