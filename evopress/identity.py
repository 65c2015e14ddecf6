"""The identities of the files that a run keeps, as JSON. A file is reused only if its identity is still the same.

An identity contains everything that the bytes of a file depend on. It contains nothing else, so that no file is rebuilt
without need. Two things that change rounding are left out, because a run that is resumed on another machine cannot keep
them: the model of the CPU or GPU, and the number of threads.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from math import isfinite

from evopress.compressors.base import Compressor
from evopress.compressors.drop import Drop
from evopress.data.splits import Splits
from evopress.data.tokenization import tokenizer_identity
from evopress.data.windows import Windows, hash_of_windows
from evopress.database.manifest import Identity, fingerprint
from evopress.evaluation import random_signs
from evopress.evaluation.answers import end_tokens
from evopress.evaluation.context import EvaluationContext
from evopress.job import Job, name_of
from evopress.models.language_model import LanguageModel
from evopress.runtime.effort import Effort
from evopress.runtime.versions import code_hash, library_versions
from evopress.space.units import Profile


def part_identity(part: object, name: str) -> dict[str, object]:
    """The settings of a compressor or search, and the hash of its code if the code is not part of evopress."""
    code = code_hash(type(part))
    return {"name": name, **asdict(part), **({} if code is None else {"code": code})}  # type: ignore[call-overload]


def database_identity(lm: LanguageModel, compressor: Compressor, splits: Splits, batch_tokens: int) -> Identity:
    """What the levels of a database depend on. The calibration text matters only to compressors with Hessians."""
    identity = {**_weights(lm), "compressor": part_identity(compressor, name_of(compressor))}
    if compressor.inputs_identity:
        identity["inputs"] = dict(compressor.inputs_identity)
    if not compressor.needs_hessian:
        return identity
    windows_per_batch = max(1, batch_tokens // splits.calibration.shape[1])
    return identity | {
        "calibration": splits.hashes["calibration"],
        "attention": _attention(lm),
        "windows_per_batch": windows_per_batch,
    }


def model_identity(lm: LanguageModel, compress: Compressor | Drop, database: Identity | None) -> Identity:
    """What the outputs of the dense and the compressed models depend on. A `Drop` has no database."""
    levels = part_identity(compress, name_of(compress)) if database is None else fingerprint(database)
    return {**_weights(lm), "attention": _attention(lm), "levels": levels}


def search_identity(job: Job, context: EvaluationContext) -> dict:
    """What the result of a search depends on."""
    settings = job.evaluator
    identity = {
        "search": part_identity(job.search, type(job.search).__name__),
        "budget": job.budget.identity,
        "space": asdict(job.space),
        "evaluator": {"fitness": settings.fitness, "top_k": settings.top_k, **_rounding(job)},
        "seed": job.seed,
        "random_signs": random_signs.GENERATOR,
        "depends_on": {
            **context.identity,
            "search_tokens": context.splits.hashes["search"],
            "bos": context.splits.bos,
            "fixed_bytes": context.space.fixed_bytes,
        },
        **_effort(job.search_limit),
    }
    return _as_json(identity)


def tuning_identity(job: Job, context: EvaluationContext, profile: Profile | None) -> dict:
    """What a tuned model depends on."""
    irrelevant = ("compare_uniform", "save_minutes")
    splits, settings = context.splits, asdict(job.tune)
    identity = {
        "tune": {key: settings[key] for key in settings if key not in irrelevant and not key.startswith("resolve")},
        "profile": profile,
        "space": asdict(job.space),
        "evaluator": _rounding(job),
        "tokens": {split: splits.hashes[split] for split in ("search", "validation")},
        "depends_on": context.identity,
        **_effort(job.limit),
    }
    if job.tune.resolve != "none":
        identity["rounding"] = rounding_identity(job, context, profile)
    return _as_json(identity)


def rounding_identity(job: Job, context: EvaluationContext, profile: Profile | None) -> dict:
    """What learnt rounding depends on."""
    settings = asdict(job.tune)
    identity = {
        "resolve": {key: settings[key] for key in settings if key.startswith("resolve") or key in ("seed", "excerpt")},
        "profile": profile,
        "space": asdict(job.space),
        "evaluator": _rounding(job),
        "calibration": context.splits.hashes["calibration"],
        "depends_on": context.identity,
        **_effort(job.limit),
    }
    return _as_json(identity)


def scores_identity(
    job: Job,
    context: EvaluationContext,
    profiles: Mapping[str, Profile | None],
    *,
    test_sets: Mapping[str, Windows],
    tasks: Mapping[str, object],
    extents: Mapping[str, Mapping[str, int]],
) -> dict:
    """What the scores of the candidates depend on. `tasks` maps the name of each task to its identity.

    `extents` says how far each tuned model was tuned, because `finish=true` or a limit in time can end a tuning early.
    """
    identity = {
        "candidates": profiles,
        "space": asdict(job.space),
        "fixed_bytes": context.space.fixed_bytes,
        "evaluator": _rounding(job),
        "test_sets": {name: hash_of_windows(windows) for name, windows in test_sets.items()},
        "tasks": tasks,
        "depends_on": context.identity,
    }
    if job.tunes:
        identity["tuned"] = tuning_identity(job, context, profiles["searched"])
        identity["compare_uniform"] = job.tune.compare_uniform
        identity["extents"] = extents
    return _as_json(identity)


def evaluation_identity(job: Job, context: EvaluationContext, scores: Mapping[str, object]) -> dict:
    """What the results, the report and the checkpoints depend on. `scores` is the `scores_identity`."""
    identity = {
        **scores,
        "model": job.model.name,
        "tokenizer": tokenizer_identity(context.lm.tokenizer),
        "ends": end_tokens(context.lm),
        "published": context.lm.origin.identity,
        "searched_with": search_identity(job, context),
        "data": asdict(job.data),
        "hashes": context.splits.hashes,
        "eval": asdict(job.eval),
        "export": asdict(job.export),
    }
    return _as_json(identity)


def _weights(lm: LanguageModel) -> dict[str, object]:
    """What the weights depend on, and everything that is computed from them without running the model."""
    versions = library_versions("evopress", "torch", "transformers")
    return {"model": lm.identity, "dtype": str(lm.dtype), "device": lm.device.type, "versions": versions}


def _attention(lm: LanguageModel) -> str:
    """The attention implementation that the model uses, even if the settings leave the choice to transformers."""
    return str(getattr(lm.model.config, "_attn_implementation", None))


def _effort(limit: Effort) -> dict[str, object]:
    """The limit of a stage. Nothing without one, as in runs of versions that knew none."""
    finite = {unit: amount for unit, amount in asdict(limit).items() if isfinite(amount)}
    return {"effort": finite} if finite else {}


def _rounding(job: Job) -> dict[str, int]:
    """The settings of the evaluator that change the rounding of results."""
    return {"batch_tokens": job.evaluator.batch_tokens, "head_tokens": job.evaluator.head_tokens}


def _as_json(identity: Mapping[str, object]) -> dict:
    """The value that comes back when `identity` is saved as JSON and read again."""
    return json.loads(json.dumps(identity))
