"""What `results.json` says about a run besides the scores of the candidates."""

from dataclasses import asdict

from evopress.evaluation.context import EvaluationContext
from evopress.job import Job, name_of
from evopress.space.units import Profile


def describe_run(job: Job, context: EvaluationContext, profile: Profile, *, search_tokens: float) -> dict[str, object]:
    """The model, the settings and the tokens of a run. `search_tokens` are the token equivalents of its search."""
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
            "search": search_tokens,
            "test": context.splits.test.numel(),
        },
        "notes": context.database.notes if context.database else [],
    }
