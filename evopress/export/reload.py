"""Loads a checkpoint of any format."""

import json
from pathlib import Path

import torch
from transformers import PreTrainedModel

from evopress.export.formats.hf import DenseSafetensors
from evopress.export.registry import registered_formats
from evopress.export.settings import Export
from evopress.models.pretrained import quiet_transformers


def load(path: str | Path, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Load the model of an exported folder, ready to run.

    Args:
        dtype: the type in which the model computes. None is that of the checkpoint.

    Raises:
        ValueError: The folder holds no checkpoint.
    """
    folder = Path(path)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is not an exported checkpoint: it has no config.json")
    config = json.loads((folder / "config.json").read_text())
    matching = (cls for cls in registered_formats() if cls.recognizes(folder, config))
    checkpoint_format = next(matching, DenseSafetensors).from_settings(Export())
    with quiet_transformers():
        return checkpoint_format.load(folder, dtype or getattr(torch, config.get("dtype", "float32"))).eval()
