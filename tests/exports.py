"""Searched tiny models for the tests of exports."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from evopress.compressors.base import Compressor
from evopress.compressors.drop import Drop
from evopress.database.build import BatchLimits, build_database
from evopress.database.cache import DecodedLevels
from evopress.database.store import Database
from evopress.export import SearchedModel
from evopress.models.language_model import LanguageModel
from evopress.models.origin import Origin
from evopress.space.build import drop_space, layer_space
from evopress.space.settings import SpaceSettings
from evopress.space.units import Profile, Space
from tests.tiny_models import token_windows

TOKENS = token_windows(2, 16)
"""Text on which the logits of checkpoints are compared."""

TRANSFORMERS4 = os.environ.get("EVOPRESS_TRANSFORMERS4")
needs_transformers4 = pytest.mark.skipif(not TRANSFORMERS4, reason="EVOPRESS_TRANSFORMERS4 names no transformers 4")


def run_in_transformers4(program: str, *arguments: object) -> str:
    """What a Python program prints that imports transformers 4, from the folder that the environment names."""
    command = [sys.executable, "-W", "ignore", "-c", program, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(TRANSFORMERS4)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


def with_origin(searched: SearchedModel, origin: Origin) -> SearchedModel:
    """The same model, as if it came from there."""
    return replace(searched, lm=replace(searched.lm, origin=origin))


def searched_drops(lm: LanguageModel, dropped: set[tuple[int, str]]) -> SearchedModel:
    """The model without the given sub-blocks."""
    space = drop_space(lm, Drop())
    profile = tuple(int((unit.blocks[0], unit.kind) in dropped) for unit in space.units)
    assert sum(profile) == len(dropped)
    return SearchedModel(lm, space, profile)


def compressed(
    lm: LanguageModel, compressor: Compressor, folder: Path, *, tie: str = "none", drops: str = "none"
) -> SearchedModel:
    """Unit i has level i, from the first again after the last. Of the parts that may be dropped, the second is."""
    compressor = compressor.for_hidden_size(lm.hidden_size)
    space = layer_space(lm, compressor, SpaceSettings(tie=tie, drops=drops, trade="any"))
    database = Database.open(folder, "levels", {"model": lm.name})
    build_database(lm, compressor, token_windows(4, 32), database, limits=BatchLimits(batch_tokens=128))
    weights = DecodedLevels(database, limit_bytes=10**9, dtype=lm.dtype, device=torch.device("cpu"))
    return SearchedModel(lm, space, in_turn(space), weights)


def in_turn(space: Space) -> Profile:
    dropped = list(space.children)[1:2]
    return space.normalized(
        tuple(
            int(index in dropped) if index in space.children else index % len(unit.levels)
            for index, unit in enumerate(space.units)
        )
    )
