"""The dense, the uniform and the searched model, and how each of them scores on the test sets and the tasks."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from evopress.evaluation.context import EvaluationContext
from evopress.evaluation.metrics import NO_DIVERGENCE, Divergence
from evopress.evaluation.task_scores import Scores, short_key
from evopress.runtime.progress import progress
from evopress.search.start_profiles import evenly_spaced_profile
from evopress.space.budget import Budget, Metric
from evopress.space.build import dense_bytes
from evopress.space.units import Profile, Space

PROGRESS_WINDOWS = 32
"""Test windows between two steps of the progress bar, summed over all processes."""

DENSE_BITS = 16.0
"""Bits of a weight that is not compressed."""


@dataclass
class Candidate:
    """The size of a model and its scores, as `results.json` stores them.

    `perplexity`, `kl` and `kl_by_position` have a value per data set. `tasks` has the scores of every task or group,
    under the names that lm-eval uses. `bits_per_weight` counts only the codes of the weights;
    `bits_per_weight_with_scales` also counts scales and zero points.
    """

    size_bytes: int
    bits_per_weight: float
    bits_per_weight_with_scales: float
    perplexity: dict[str, float] = field(default_factory=dict)
    kl: dict[str, float] = field(default_factory=dict)
    kl_by_position: dict[str, list[float]] = field(default_factory=dict)
    tasks: dict[str, Scores] = field(default_factory=dict)

    def metrics(self) -> dict[str, float]:
        """All sizes and scores for a tracker, under names such as `kl/wikitext2`."""
        sizes = {"size_bytes": self.size_bytes, "bits_per_weight_with_scales": self.bits_per_weight_with_scales}
        scores = {f"perplexity/{name}": value for name, value in self.perplexity.items()}
        scores |= {f"kl/{name}": value for name, value in self.kl.items()}
        tasks = {
            f"{task}/{short_key(key)}": value for task, values in self.tasks.items() for key, value in values.items()
        }
        return {**sizes, **scores, **tasks}


def compared_profiles(space: Space, searched: Profile, budget: Budget) -> dict[str, Profile | None]:
    """The profiles of the candidates by name; None stands for the dense model."""
    return {"dense": None, "uniform": evenly_spaced_profile(space, budget), "searched": searched}


def measure_candidates(
    context: EvaluationContext,
    profiles: Mapping[str, Profile | None],
    *,
    metric: Metric,
    test_sets: Mapping[str, Tensor],
) -> dict[str, Candidate]:
    """Measure the candidates on the test sets. Their `tasks` stay empty.

    `profiles` and `test_sets` (token windows) are keyed by name. `metric` is the metric of the compressor's levels.
    Every process must call this.
    """
    candidates = {name: _unmeasured(context, profile, metric) for name, profile in profiles.items()}
    for test_set, tokens in test_sets.items():
        divergences = _divergences(context, list(profiles.values()), tokens, test_set)
        for candidate, divergence in zip(candidates.values(), divergences, strict=True):
            candidate.perplexity[test_set] = divergence.perplexity
            candidate.kl[test_set] = divergence.mean_kl
            candidate.kl_by_position[test_set] = [round(kl, 5) for kl in divergence.kl_by_position]
    return candidates


def _divergences(
    context: EvaluationContext, profiles: list[Profile | None], tokens: Tensor, test_set: str
) -> list[Divergence]:
    totals = [NO_DIVERGENCE] * len(profiles)
    for part in progress(tokens.split(PROGRESS_WINDOWS), desc=f"evaluate on {test_set}", unit="batch"):
        divergences = context.evaluator.measure(profiles, part)
        totals = [total + divergence for total, divergence in zip(totals, divergences, strict=True)]
    return totals


def _unmeasured(context: EvaluationContext, profile: Profile | None, metric: Metric) -> Candidate:
    if profile is None:
        return Candidate(dense_bytes(context.lm), DENSE_BITS, DENSE_BITS)
    space = context.space
    level_bytes = space.size_bytes(profile) - space.fixed_bytes
    return Candidate(space.size_bytes(profile), _code_bits(space, profile, metric), 8 * level_bytes / space.num_weights)


def _code_bits(space: Space, profile: Profile, metric: Metric) -> float:
    """Bits per weight of the codes alone, without scales and zero points."""
    kept = [
        (unit.num_weights, unit.levels[profile[index]].value)
        for index, unit in enumerate(space.units)
        if not space.is_inside_dropped(index, profile)
    ]
    if metric == "bits":
        bits = sum(value * num_weights for num_weights, value in kept)
    else:
        bits = DENSE_BITS * sum(num_weights * (1 - value) for num_weights, value in kept)
    return bits / space.num_weights
