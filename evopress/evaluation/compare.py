"""Dense, uniform and searched model side by side: what is measured of them, and what the results say of the run."""

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial

from torch import Tensor

from evopress.data import windows
from evopress.evaluation.candidates import Candidate, compressed_candidate, dense_candidate
from evopress.evaluation.context import EvaluationContext
from evopress.evaluation.lm_eval_tasks import run_tasks
from evopress.evaluation.metrics import Divergence
from evopress.job import Job, name_of
from evopress.runtime import distributed
from evopress.runtime.json_files import read_json
from evopress.runtime.progress import progress
from evopress.search.moves import evenly_spaced_profile
from evopress.space.apply import applied
from evopress.space.build import dense_bytes
from evopress.space.units import Profile

AT_ONCE = 32
"""Test windows between two steps of the progress bar; processes share them."""


def compare(job: Job, context: EvaluationContext, profile: Profile) -> dict[str, Candidate]:
    """Dense, uniform and searched on the test split, on `eval.datasets` and on `eval.tasks`."""
    uniform = evenly_spaced_profile(context.space, job.budget)
    profiles: dict[str, Profile | None] = {"dense": None, "uniform": uniform, "searched": profile}
    candidates = {name: _candidate(job, context, chosen) for name, chosen in profiles.items()}
    for name, tokens in _test_sets(job, context).items():
        for candidate, result in zip(candidates.values(), _measure(context, profiles, tokens, name), strict=True):
            candidate.perplexity[name] = result.perplexity
            candidate.kl[name] = result.mean_kl
            candidate.kl_by_position[name] = [round(kl, 5) for kl in result.kl_by_position]
    if job.eval.tasks and distributed.is_first():
        for name, candidate in candidates.items():
            with applied(context.lm, context.space, context.evaluator.weights, profiles[name]):
                candidate.tasks = run_tasks(context.lm.model, context.lm.tokenizer, job.eval)
    return candidates


def _test_sets(job: Job, context: EvaluationContext) -> dict[str, Tensor]:
    sets = {windows.set_name(job.data.test_source or job.data.source): context.splits.test}
    for source in job.eval.datasets:
        load = partial(windows.load_test, source, job.data, context.lm.tokenizer, job.outputs / "cache")
        sets[windows.set_name(source)] = distributed.from_first(load)
    return sets


def _measure(
    context: EvaluationContext, profiles: Mapping[str, Profile | None], tokens: Tensor, name: str
) -> list[Divergence]:
    totals = [Divergence(0.0, 0.0, 0, 0) for _ in profiles]
    for part in progress(tokens.split(AT_ONCE), desc=f"evaluate on {name}", unit="batch"):
        parts = context.evaluator.measure(list(profiles.values()), part)
        totals = [total + result for total, result in zip(totals, parts, strict=True)]
    return totals


def _candidate(job: Job, context: EvaluationContext, profile: Profile | None) -> Candidate:
    if profile is None:
        return dense_candidate(dense_bytes(context.lm))
    left = [
        (unit.num_weights, unit.levels[profile[index]].value)
        for index, unit in enumerate(context.space.units)
        if not context.space.is_gone(index, profile)
    ]
    if job.compress.metric == "bits":
        bits = sum(value * num_weights for num_weights, value in left)
    else:
        bits = 16 * sum(num_weights * (1 - value) for num_weights, value in left)
    return compressed_candidate(context.space, profile, bits / context.space.num_weights)


def describe(job: Job, context: EvaluationContext, profile: Profile) -> dict[str, object]:
    """What `results.json` says of the run besides what was measured."""
    searched = read_json(job.folder / "profile.json")
    return {
        "model": job.model.name,
        "compress": name_of(job.compress),
        "budget": {
            "metric": job.budget.metric,
            "target": job.budget.target,
            "achieved": job.budget.achieved(context.space, profile),
        },
        "search": name_of(job.search),
        "seed": job.seed,
        "data": {**asdict(job.data), "hashes": context.splits.hashes},
        "perplexity_convention": f"token level, windows of {job.data.window}, BOS {'on' if job.data.bos else 'off'}",
        "tokens": {
            "calibration": context.splits.calibration.numel(),
            "search": searched["token_equivalents"],
            "test": context.splits.test.numel(),
        },
        "notes": context.database.notes if context.database else [],
    }
