"""Prepares everything that a search needs: the model, its tokens, the space, the database and the evaluator."""

import logging
from functools import partial
from math import isfinite

from torch import Tensor

from evopress.compressors.base import Compressor
from evopress.compressors.drop import Drop
from evopress.data.splits import SPLITS, Splits, load_splits
from evopress.database.build import BatchLimits, build_database, expected_blocks
from evopress.database.cache import DecodedLevels
from evopress.database.store import Database
from evopress.evaluation.context import EvaluationContext
from evopress.evaluation.data_sets import load_test_sets
from evopress.evaluation.evaluator import Evaluator, EvaluatorSettings
from evopress.identity import database_identity, model_identity
from evopress.job import Job, name_of
from evopress.models.language_model import LanguageModel
from evopress.models.loading import load_model
from evopress.models.source import ModelSource
from evopress.models.vocabulary import check_tokens
from evopress.planning.planned_run import space_of
from evopress.runtime import distributed
from evopress.runtime.tracking import Tracker
from evopress.space.units import Space

log = logging.getLogger(__name__)

NUM_CHECK_WINDOWS = 4
"""Number of validation windows on which the dense model is checked."""


def load_inputs(job: Job) -> tuple[LanguageModel, Splits]:
    """Load the model and the tokens, and check the dense model. Raises ValueError if any of these is unusable."""
    cache = job.outputs / "cache"
    if isinstance(job.model, LanguageModel):
        lm = job.model
    else:
        lm = distributed.first_then_others(partial(load_model, job.model, cache))
    splits = distributed.from_first(partial(load_splits, job.data, lm.tokenizer, cache))
    if "evaluate" in job.stages:  # unusable test text should fail now, not after the search
        check_tokens(lm, load_test_sets(splits, job.data, test_sets=job.test_sets, tokenizer=lm.tokenizer, cache=cache))
    check_tokens(lm, {split: getattr(splits, split) for split in SPLITS})
    limit = job.model.max_perplexity if isinstance(job.model, ModelSource) else None
    tokens = splits.validation[:NUM_CHECK_WINDOWS]
    check_dense(lm, tokens, settings=job.evaluator, max_perplexity=limit or lm.vocab_size)
    return lm, splits


def check_dense(lm: LanguageModel, tokens: Tensor, *, settings: EvaluatorSettings, max_perplexity: float) -> None:
    """Log the perplexity of the dense model. Raises ValueError if it is not below `max_perplexity`."""
    (dense,) = Evaluator(lm, Space(()), None, settings).measure([None], tokens)
    log.info("dense perplexity %.2f on %d validation tokens", dense.perplexity, tokens.numel())
    if not (isfinite(dense.perplexity) and dense.perplexity < max_perplexity):
        raise ValueError(
            f"the dense model has perplexity {dense.perplexity:.4g} on data.source, which is not below "
            f"{max_perplexity:g} (the default limit is the perplexity of a uniform guess): check model.path, "
            f"model.dtype and data.source, or raise model.max_perplexity if the model is untrained"
        )


def prepare_context(job: Job, lm: LanguageModel, splits: Splits) -> EvaluationContext:
    """Build the space of the job, complete its database, and set up the evaluator."""
    space = space_of(job, lm)
    if isinstance(job.compress, Drop):
        evaluator = Evaluator(lm, space, None, job.evaluator, folder=job.outputs / "cache")
        return EvaluationContext(lm, splits, space, evaluator, None, model_identity(lm, job.compress, None))
    compressor = job.compress.for_hidden_size(lm.hidden_size)
    compressor.check_tensors(dict(lm.model.named_parameters()))
    database = open_database(job, lm, compressor=compressor, splits=splits)
    settings = job.evaluator
    build_database(
        lm,
        compressor,
        splits.calibration,
        database,
        limits=BatchLimits(batch_tokens=settings.batch_tokens, states_gb=settings.states_gb),
        report=partial(_log_blocks, job.tracker),
    )
    weights = DecodedLevels(database, limit_bytes=int(settings.cache_gb * 1e9), dtype=lm.dtype, device=lm.device)
    evaluator = Evaluator(lm, space, weights, settings, folder=database.folder)
    identity = model_identity(lm, compressor, database.identity)
    return EvaluationContext(lm, splits, space, evaluator, database, identity)


def _log_blocks(tracker: Tracker, done: int, total: int) -> None:
    tracker.log({"database/share_done": done / total}, step=done)


def open_database(job: Job, lm: LanguageModel, *, compressor: Compressor, splits: Splits) -> Database:
    """Open the database for the levels of this job. It may be new, partly built or complete."""
    name = name_of(compressor)
    identity = database_identity(lm, compressor, splits, job.evaluator.batch_tokens)
    return Database.open(job.outputs / "databases" / job.model.name, name, identity, expected_blocks(lm, compressor))
