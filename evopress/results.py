"""The file `results.json` of a run, and the parts of it that a resumed run can reuse."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from evopress.data.windows import Windows
from evopress.evaluation.candidates import Candidate, compared_profiles
from evopress.evaluation.context import EvaluationContext
from evopress.evaluation.task_identity import task_identities
from evopress.identity import evaluation_identity, scores_identity
from evopress.job import Job, name_of
from evopress.models.active_experts import active_parameters, has_experts
from evopress.runtime import distributed
from evopress.runtime.checksums import read_json_if_intact, with_checksum
from evopress.runtime.json_files import read_json, write_json
from evopress.space.active import active_bytes
from evopress.space.budget import Budget
from evopress.space.build import FILE_WEIGHT_BYTES, dense_bytes
from evopress.space.memory import MemoryBudget
from evopress.space.units import Profile

CANDIDATES = ("dense", "uniform", "searched", "tuned", "uniform_tuned")
"""The models that results compare. The last two exist only if the run tunes."""


@dataclass(frozen=True)
class ResultsFile:
    """The file `results.json`.

    `recorded` is the content of the file before this evaluation. It is empty if the file is missing or damaged.
    `measured` is everything that the scores depend on; it is written together with the scores. `done` is everything
    that the whole evaluation depends on; it is written at the very end.
    """

    path: Path
    measured: Mapping[str, Any]
    done: Mapping[str, object]
    recorded: Mapping[str, dict]

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do."""
        return self.recorded.get("done") == self.done

    def recorded_candidates(self) -> dict[str, Candidate] | None:
        """The candidates with their scores, if they were already measured with the same settings."""
        if self.recorded.get("measured") != self.measured:
            return None
        return {name: Candidate(**self.recorded[name]) for name in CANDIDATES if name in self.recorded}

    def recorded_answers(self, identity: str) -> dict[str, Any] | None:
        """The answers to prompts, if they were already given by the same models under this identity."""
        answers = self.recorded.get("answers", {})
        is_same = self.recorded.get("measured") == self.measured and answers.get("identity") == identity
        return answers if is_same else None

    def write(self, results: Mapping[str, object]) -> None:
        write_json(self.path, with_checksum(results))


def open_results(
    job: Job,
    context: EvaluationContext,
    profiles: Mapping[str, Profile | None],
    *,
    test_sets: Mapping[str, Windows],
    extents: Mapping[str, Mapping[str, int]],
) -> ResultsFile:
    """The results file of a job, for these candidates on these test sets. Every process must call this.

    `extents` says how far each tuned model was tuned.
    """
    path = job.folder / "results.json"
    tasks = distributed.from_first(partial(task_identities, job.eval, context.lm))
    measured = scores_identity(job, context, profiles, test_sets=test_sets, tasks=tasks, extents=extents)
    done = evaluation_identity(job, context, measured)
    recorded = distributed.from_first(lambda: read_json_if_intact(path))
    return ResultsFile(path, measured, done, recorded)


def describe_run(job: Job, context: EvaluationContext, profile: Profile) -> dict[str, object]:
    """The model, the settings and the token counts of a run: everything in `results.json` except the scores."""
    search_tokens = read_json(job.folder / "profile.json")["token_equivalents"]
    return {
        "model": job.model.name,
        "compress": name_of(job.compress),
        "budget": job.budget.facts(context.space, profile),
        "search": name_of(job.search),
        "seed": job.seed,
        "data": {**asdict(job.data), "hashes": context.splits.hashes},
        "perplexity_convention": f"token level, windows of {job.data.window}, BOS {'on' if job.data.bos else 'off'}",
        "test_sets": {
            test_set.name: {
                "source": test_set.source,
                "asked_tokens": test_set.num_tokens,  # None: all whole windows
                "text": test_set.convention(),
            }
            for test_set in job.test_sets
        },
        "tokens": {
            "calibration": context.splits.calibration.numel(),
            "search": search_tokens,
            "test": context.splits.test.numel(),
        },
        "notes": context.database.notes if context.database else [],
        **memory_of_candidates(job.budget, context, profile),
        **active_bytes_of_candidates(job.budget, context, profile),
    }


def memory_of_candidates(budget: Budget, context: EvaluationContext, profile: Profile) -> dict[str, object]:
    """The entry `memory`: bytes of the weights, the cache and the reserve of every candidate. Only for such budgets."""
    if not isinstance(budget, MemoryBudget):
        return {}
    space = context.space
    dense = budget.parts(space, space.uniform(0)) | {"weights": dense_bytes(context.lm)}
    profiles = {name: one for name, one in compared_profiles(space, profile, budget).items() if one is not None}
    return {"memory": {"dense": dense, **{name: budget.parts(space, one) for name, one in profiles.items()}}}


def active_bytes_of_candidates(budget: Budget, context: EvaluationContext, profile: Profile) -> dict[str, object]:
    """The entry `active_bytes`: the bytes that a token uses, for every candidate. Only for mixtures of experts."""
    space, lm = context.space, context.lm
    if not has_experts(lm):
        return {}
    profiles = {name: one for name, one in compared_profiles(space, profile, budget).items() if one is not None}
    dense = FILE_WEIGHT_BYTES * active_parameters(lm)
    return {"active_bytes": {"dense": dense, **{name: active_bytes(space, lm, one) for name, one in profiles.items()}}}
