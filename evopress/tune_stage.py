"""The stage `tune`. It learns the rounding of the searched profile, and tunes its scales and norms, as the job asks.

On request, it does the same with the uniform profile.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace

from evopress.evaluation.candidates import compared_profiles
from evopress.evaluation.context import EvaluationContext
from evopress.identity import rounding_identity, tuning_identity
from evopress.job import Job
from evopress.runtime.clock import Clock
from evopress.space.units import Profile
from evopress.tune_limit import is_time_over
from evopress.tuning.parameters import kind_of
from evopress.tuning.resolver import Resolution, resolve
from evopress.tuning.settings import resolving_equivalents, token_equivalents
from evopress.tuning.state import TuningResult
from evopress.tuning.task import TuningTask
from evopress.tuning.tuner import tune

CANDIDATES = {"tuned": "searched", "uniform_tuned": "uniform"}
"""The name of a tuned model in the results, and the name of the candidate whose profile it has."""


@dataclass(frozen=True)
class TunedModel:
    """A tuned model. `context` has its weights; it is None if the untuned model is kept.

    `resolution` is None if the job does not learn the rounding, and `result` if it does not tune scales and norms.
    """

    profile: Profile
    context: EvaluationContext | None
    resolution: Resolution | None
    result: TuningResult | None

    @property
    def changed(self) -> list[str]:
        """What is different from the untuned model."""
        kinds = {kind_of(name, change) for name, change in (self.result.changes.items() if self.result else ())}
        changed = {
            "rounding": self.resolution is not None and self.resolution.is_kept,
            "scales and norms": bool(kinds & {"scales", "norms"}),
            "weights": "weights" in kinds,
        }
        return [part for part, is_changed in changed.items() if is_changed]

    @property
    def extent(self) -> dict[str, int]:
        """How far it was tuned: the blocks whose rounding was learnt or kept, and the steps of scales and norms."""
        blocks = {} if self.resolution is None else {"blocks": self.resolution.num_blocks}
        return blocks | ({} if self.result is None else {"steps": self.result.num_steps})

    def facts(self, job: Job, context: EvaluationContext) -> dict[str, object]:
        """What `results.json` says about the tuning."""
        splits = context.splits
        calibration, validation = (
            (len(w), job.tune.window(w.shape[1])) for w in (splits.calibration, splits.validation)
        )
        kls: list[float] = []
        facts: dict[str, object] = {"kept": self.context is not None, "changed": self.changed}
        cost = 0.0
        if self.resolution is not None:
            kls += [self.resolution.kl_before, self.resolution.kl_kept]
            facts["rounding"] = asdict(self.resolution)
            share = self.resolution.num_blocks / context.lm.num_blocks  # fewer if the run was finished early
            cost += resolving_equivalents(job.tune, calibration=calibration, validation=validation, share=share)
        if self.result is not None:
            kls += [self.result.kl_before, self.result.kl_after]
            facts["checks"] = self.result.checks
            steps, checks = self.result.num_steps, len(self.result.checks)
            cost += token_equivalents(job.tune, steps, checks, windows=validation)
        return facts | {"kl_validation_before": kls[0], "kl_validation_after": kls[-1], "token_equivalents": cost}


def tune_models(job: Job, context: EvaluationContext, profile: Profile, clock: Clock) -> dict[str, TunedModel]:
    """The tuned models by their names in the results. Empty if the job does not tune. Collective."""
    if not job.tunes:
        return {}
    profiles = compared_profiles(context.space, profile, job.budget)
    wanted = list(CANDIDATES) if job.tune.compare_uniform else ["tuned"]
    is_over = {"tuned": lambda: job.finish or is_time_over(job, clock), "uniform_tuned": lambda: job.finish}
    return {name: _tuned(job, context, name, profiles=profiles, is_over=is_over[name]) for name in wanted}


def final_model(tuned: Mapping[str, TunedModel], context: EvaluationContext) -> tuple[str, EvaluationContext]:
    """The name in the results, and the context, of the model to export: the tuned one if it is kept."""
    kept = tuned["tuned"].context if "tuned" in tuned else None
    return ("searched", context) if kept is None else ("tuned", kept)


def _tuned(
    job: Job,
    context: EvaluationContext,
    name: str,
    *,
    profiles: Mapping[str, Profile | None],
    is_over: Callable[[], bool],
) -> TunedModel:
    profile = profiles[CANDIDATES[name]]
    assert profile is not None
    task = TuningTask(
        settings=job.tune,
        context=context,
        profile=profile,
        path=job.folder / f"{name}.safetensors",
        identity=tuning_identity(job, context, profile),
        is_over=is_over,
    )
    resolution = result = tuned = None
    if job.tune.resolve != "none":
        rounding = replace(
            task, path=job.folder / f"{name}.rounding.safetensors", identity=rounding_identity(job, context, profile)
        )
        resolved, resolution = resolve(rounding)
        task = replace(task, identity={**task.identity, "rounded_blocks": resolution.num_blocks})
        if resolution.is_kept:
            tuned = resolved
            task = replace(task, context=resolved, settings=job.tune.after_rounding())
    if job.tune.tokens:
        prefix = "tune/" if name == "tuned" else "tune/uniform_"

        def report(metrics: Mapping[str, float], step: int) -> None:
            job.tracker.log({f"{prefix}{key}": value for key, value in metrics.items()}, step=step)

        after, result = tune(task, report)
        tuned = after or tuned
    return TunedModel(profile, tuned, resolution, result)
