"""Loads a checkpoint of any format."""

from pathlib import Path

import torch
from transformers import PreTrainedModel

from evopress.export.formats.hf import DenseSafetensors
from evopress.export.registry import registered_formats
from evopress.export.settings import Export
from evopress.models.checkpoints import dtype_in, read_config_values
from evopress.models.pretrained import quiet_transformers


def load(path: str | Path, dtype: torch.dtype | None = None, *, attention: str | None = None) -> PreTrainedModel:
    """Load the model of an exported folder, ready to run. No code in the folder is run, and no pickle is opened.

    Args:
        dtype: the type in which the model computes. None is the type of the checkpoint.
        attention: an attention implementation of transformers. None is the one that the checkpoint or transformers
            prefers.

    Raises:
        ValueError: The folder has no checkpoint that can be loaded, or one that would run code or read other folders.
    """
    folder = Path(path)
    try:
        config = read_config_values(folder)
        matching = (cls for cls in registered_formats() if cls.recognizes(folder, config))
        checkpoint_format = next(matching, DenseSafetensors).from_settings(Export())
        with quiet_transformers():
            return checkpoint_format.load(folder, dtype or dtype_in(config), attention=attention).eval()
    except Exception as error:  # the libraries raise errors of many types for damaged and malicious files
        raise ValueError(
            f"{folder} cannot be loaded as an exported checkpoint: {error or type(error).__name__}"
        ) from error
