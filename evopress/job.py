"""Everything that a run depends on, as plain typed values."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from evopress.compressors.base import Compressor
from evopress.compressors.drop import Drop
from evopress.data.settings import Data
from evopress.data.test_sets import TestSet, check_text_column, list_test_sets
from evopress.engines import check_engine
from evopress.evaluation.eval_checks import check_eval
from evopress.evaluation.eval_settings import Eval
from evopress.evaluation.evaluator import EvaluatorSettings
from evopress.export import Export, check_cache_type, check_export
from evopress.export.registry import chosen_formats
from evopress.models.language_model import LanguageModel
from evopress.models.source import ModelSource
from evopress.runtime.effort import Effort, parse_effort
from evopress.runtime.tracking import Tracker
from evopress.search.base import Search
from evopress.space.budget import Budget
from evopress.space.memory import MemoryBudget
from evopress.space.settings import SpaceSettings
from evopress.tuning.learnt_rounding import can_learn
from evopress.tuning.settings import Tuning

log = logging.getLogger(__name__)

STAGES = ("database", "search", "tune", "evaluate")
"""The stages of a run. Another stage, `plan`, may come first or alone: it only estimates the cost of the others."""

SEARCH_SHARE = 0.5
"""The share of `effort` that the search may spend in a run that tunes."""

GROUP_CLASSES: dict[str, tuple[type, ...]] = {
    "model": (ModelSource,),
    "data": (Data,),
    "compress": (Compressor, Drop),
    "space": (SpaceSettings,),
    "budget": (Budget,),
    "search": (Search,),
    "tune": (Tuning,),
    "evaluator": (EvaluatorSettings,),
    "eval": (Eval,),
    "export": (Export,),
    "tracking": (Tracker,),
}
"""The base classes of the objects that each configuration group may build."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything a run depends on. `folder` is the run directory, `outputs` holds the databases and caches of all runs.

    With `targets`, the run searches several budgets. Each target replaces the target of `budget`, and gets its own
    folder inside `folder`. `config` is the configuration that trackers show. Every run writes `metrics.jsonl`, whatever
    its tracker.

    `effort` limits what the search and the tuning cost together, for each target: token equivalents such as "300k", or
    a time such as "30min". With `finish`, a run that was interrupted neither searches nor tunes any further.
    """

    model: ModelSource | LanguageModel
    data: Data
    compress: Compressor | Drop
    space: SpaceSettings
    budget: Budget
    search: Search
    tune: Tuning = field(default_factory=Tuning)
    evaluator: EvaluatorSettings
    eval: Eval
    export: Export = field(default_factory=Export)
    tracker: Tracker
    stages: tuple[str, ...] = STAGES
    targets: tuple[float | str, ...] = ()
    effort: int | str | None = None
    finish: bool = False
    seed: int = 0
    folder: Path
    outputs: Path
    config: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Decide what `tune.resolve=auto` means for the levels of this job."""
        if self.tune.resolve == "auto":
            learns = self._has_learnable_codes and self.data.num_windows("calibration") > 1
            object.__setattr__(self, "tune", replace(self.tune, resolve="signround" if learns else "none"))

    @property
    def _has_learnable_codes(self) -> bool:
        return not isinstance(self.compress, Drop) and can_learn(self.compress.weight_kinds)

    @property
    def test_sets(self) -> list[TestSet]:
        """The texts that the results are measured on; the first is the test split. Raises ValueError like `check`."""
        return list_test_sets(self.data, self.eval.datasets, self.eval.test_tokens)

    @property
    def planned_stages(self) -> tuple[str, ...]:
        """The stages that run, or all stages if the job only makes a plan."""
        return STAGES if self.stages == ("plan",) else self.stages

    @property
    def tunes(self) -> bool:
        """Whether rounding is learnt, or scales and norms are tuned, after the search."""
        return "tune" in self.planned_stages and not self.tune.does_nothing

    @property
    def limit(self) -> Effort:
        """What the search and the tuning may cost together. Raises ValueError if `effort` is malformed."""
        return parse_effort(self.effort)

    @property
    def search_limit(self) -> Effort:
        """What the search may cost. The tuning may cost what is left of the whole effort after the search."""
        return self.limit.times(SEARCH_SHARE) if self.tunes else self.limit

    def check(self) -> None:
        """Raise ValueError if settings do not fit together. Loads nothing."""
        unknown = set(self.stages) - {"plan", *STAGES}
        if unknown:
            known = ", ".join(("plan", *STAGES))
            raise ValueError(f"stages contains {min(unknown)!r}, which is not a stage: use some of {known}")
        if isinstance(self.compress, Drop) and self.space.drops != "none":
            raise ValueError(
                f"space.drops={self.space.drops} adds drops to a compressor of layers, but compress=drop drops parts "
                "of the model already: set space.drops=none, or use another compressor, such as compress=gptq, for "
                "levels and drops together"
            )
        parse_effort(self.effort)
        if self.finish:
            self._check_finish()
        self._check_budget()
        if isinstance(self.compress, Compressor):
            for advice in self.compress.advice(self.space):
                log.warning("%s", advice)
        check_export(self.export, self.compress, space=self.space)
        if isinstance(self.budget, MemoryBudget):
            self._check_memory(self.budget)
        self._check_tuning()
        check_text_column(self.data, [test_set.source for test_set in self.test_sets])
        check_eval(self.eval)
        if "evaluate" in self.planned_stages:
            check_engine(self.eval, self.export)
        self.tracker.check()

    def _check_budget(self) -> None:
        """Raise ValueError for a target that no profile can meet, or a metric in which some levels are equal."""
        low, high = self.compress.span
        levels_key = "compress" if isinstance(self.compress, Drop) else self.compress.levels_key
        if self.space.drops != "none":  # every part of the model may be dropped
            low, high = (0.0, high) if self.compress.metric == "bits" else (low, 1.0)
        for target in self.targets or (self.budget.target,):
            replace(self.budget, target=target).check(self.compress.metric, (low, high), key=levels_key)
        needs_size = not isinstance(self.compress, Drop) and self.compress.needs_size_budget
        if needs_size and self.budget.metric == self.compress.metric:
            raise ValueError(
                f"budget.metric is {self.budget.metric}, but compress.group_size lists several sizes, and their levels "
                "differ only in bytes: use budget=size, or a single compress.group_size"
            )

    def _check_memory(self, budget: MemoryBudget) -> None:
        """Raise ValueError if the budget does not fit the formats or the targets. Warn of formats that need more."""
        check_cache_type(self.export, budget.kv)
        if budget.also is not None and self.targets:
            raise ValueError("budget.also works only with a single target: remove targets, or set budget.also=null")
        decoded = [one.name for one in chosen_formats(self.export) if not one.packs_levels]
        if decoded and not isinstance(self.compress, Drop):
            log.warning(
                "export.formats=%s stores decoded weights, so engines take more memory for it than budget.target",
                decoded,
            )

    def _check_tuning(self) -> None:
        """Raise ValueError if the levels do not have what the job learns or trains."""
        if not self.tunes:
            return
        if self.tune.weights_lr and self.compress.metric not in ("sparsity", "drop"):
            raise ValueError(
                "tune.weights_lr trains kept weights of sparse levels and dense weights next to drops, and "
                f"compress={name_of(self.compress)} has neither: set tune.weights_lr=0"
            )
        if self.tune.resolve == "none":
            return
        if not self._has_learnable_codes:
            raise ValueError(
                f"tune.resolve={self.tune.resolve} learns integer codes, and compress={name_of(self.compress)} has "
                "none: set tune.resolve=none, or use compress=gptq or compress=rtn"
            )
        if self.data.num_windows("calibration") < 2:
            raise ValueError(
                f"tune.resolve={self.tune.resolve} needs a calibration window to learn from and one to measure, but "
                f"data.calibration_tokens is {self.data.calibration_tokens}: set it to at least {2 * self.data.window}"
            )

    def _check_finish(self) -> None:
        """Raise ValueError if the folder has no search whose best profile could be taken."""
        if self.targets:
            raise ValueError(
                "finish=true is for a run with a single budget, but this one has targets: set finish=false"
            )
        if not any((self.folder / name).exists() for name in ("search.jsonl", "profile.json")):
            raise ValueError(
                f"finish=true takes the best profile so far, but the search of {self.folder} has not started: resume "
                "the run without finish=true"
            )


def name_of(part: object) -> str:
    """The name of a compressor or a search in file names and results."""
    return type(part).__name__.lower()
