"""A tiny model with levels that can be tuned."""

from pathlib import Path
from typing import Literal

import torch

from evopress.compressors.base import Compressor
from evopress.data.splits import Splits
from evopress.database.cache import DecodedLevels
from evopress.evaluation.context import EvaluationContext
from evopress.evaluation.evaluator import Evaluator, EvaluatorSettings
from evopress.models.language_model import LanguageModel
from evopress.models.loading import wrap_model
from evopress.space.build import layer_space
from evopress.space.settings import SpaceSettings
from tests.databases import built
from tests.tiny_models import random_model, token_windows, tokenizer


def tunable_context(
    compressor: Compressor,
    root: Path,
    *,
    family: str = "llama",
    dtype: torch.dtype = torch.float32,
    drops: Literal["none", "subblock"] = "none",
) -> EvaluationContext:
    """A model of its own at all levels of a compressor, with windows of random tokens."""
    lm: LanguageModel = wrap_model(random_model(family).to(dtype), tokenizer(), f"tiny-{family}")
    database = built(lm, compressor, root)
    weights = DecodedLevels(database, limit_bytes=10**9, dtype=lm.dtype, device=lm.device)
    space = layer_space(lm, compressor, SpaceSettings(drops=drops, trade="any" if drops != "none" else "size"))
    settings = EvaluatorSettings(batch_tokens=128, head_tokens=32)
    windows = {split: token_windows(4, 16, seed) for seed, split in enumerate(("calibration", "search", "validation"))}
    splits = Splits(**windows, test=token_windows(4, 16, 3), hashes={})
    return EvaluationContext(lm, splits, space, Evaluator(lm, space, weights, settings), database, {"model": "tiny"})
