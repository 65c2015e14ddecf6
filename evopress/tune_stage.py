"""The stage `tune`. It tunes the searched profile and, on request, the uniform one."""

from collections.abc import Mapping
from dataclasses import dataclass

from evopress.evaluation.candidates import compared_profiles
from evopress.evaluation.context import EvaluationContext
from evopress.identity import tuning_identity
from evopress.job import Job
from evopress.space.units import Profile
from evopress.tuning.settings import token_equivalents
from evopress.tuning.state import TuningResult
from evopress.tuning.tuner import TuningTask, tune

CANDIDATES = {"tuned": "searched", "uniform_tuned": "uniform"}
"""The name of a tuned model in the results, and the name of the candidate whose profile it has."""


@dataclass(frozen=True)
class TunedModel:
    """A tuned model. `context` has its weights; it is None if the untuned model is kept."""

    profile: Profile
    context: EvaluationContext | None
    result: TuningResult

    def facts(self, job: Job, context: EvaluationContext) -> dict[str, object]:
        """What `results.json` says about the tuning."""
        count, length = context.splits.validation.shape
        return {
            "kept": self.context is not None,
            "kl_validation_before": self.result.kl_before,
            "kl_validation_after": self.result.kl_after,
            "checks": self.result.checks,
            "token_equivalents": token_equivalents(
                job.tune, self.result.checks[-1][0], len(self.result.checks), windows=(count, length)
            ),
        }


def tune_models(job: Job, context: EvaluationContext, profile: Profile) -> dict[str, TunedModel]:
    """The tuned models by their names in the results. Empty if the job does not tune. Collective."""
    if not job.tunes:
        return {}
    profiles = compared_profiles(context.space, profile, job.budget)
    wanted = list(CANDIDATES) if job.tune.compare_uniform else ["tuned"]
    return {name: _tuned(job, context, name, profiles) for name in wanted}


def final_model(tuned: Mapping[str, TunedModel], context: EvaluationContext) -> tuple[str, EvaluationContext]:
    """The name in the results, and the context, of the model to export: the tuned one if it is kept."""
    kept = tuned["tuned"].context if "tuned" in tuned else None
    return ("searched", context) if kept is None else ("tuned", kept)


def _tuned(job: Job, context: EvaluationContext, name: str, profiles: Mapping[str, Profile | None]) -> TunedModel:
    profile = profiles[CANDIDATES[name]]
    assert profile is not None
    task = TuningTask(
        settings=job.tune,
        context=context,
        profile=profile,
        path=job.folder / f"{name}.safetensors",
        identity=tuning_identity(job, context, profile),
    )
    prefix = "tune/" if name == "tuned" else "tune/uniform_"

    def report(metrics: Mapping[str, float], step: int) -> None:
        job.tracker.log({f"{prefix}{key}": value for key, value in metrics.items()}, step=step)

    return TunedModel(profile, *tune(task, report))
