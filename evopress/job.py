"""Everything that a run depends on, as plain typed values."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from evopress.compressors.base import Compressor
from evopress.compressors.drop import Drop
from evopress.data.settings import Data
from evopress.evaluation.eval_checks import check_eval
from evopress.evaluation.eval_settings import Eval
from evopress.evaluation.evaluator import EvaluatorSettings
from evopress.export import Export
from evopress.export import check as check_export
from evopress.models.language_model import LanguageModel
from evopress.models.source import ModelSource
from evopress.runtime.tracking import Tracker
from evopress.search.base import Search
from evopress.space.budget import Budget
from evopress.space.settings import SpaceSettings

STAGES = ("database", "search", "evaluate")
"""What a run does. The stage `plan` may stand before them, or alone: it tells what they would take."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything a run depends on. `folder` is the run directory, `outputs` holds databases and caches of all runs.

    With `targets`, each of them takes the place of the budget's own in turn, in a folder of its own below `folder`.
    `config` is what trackers are told of the settings. Metrics go to `metrics.jsonl` whatever the tracker.
    """

    model: ModelSource | LanguageModel
    data: Data
    compress: Compressor | Drop
    space: SpaceSettings
    budget: Budget
    search: Search
    evaluator: EvaluatorSettings
    eval: Eval
    export: Export = field(default_factory=Export)
    tracker: Tracker
    stages: tuple[str, ...] = STAGES
    targets: tuple[float | str, ...] = ()
    seed: int = 0
    folder: Path
    outputs: Path
    config: Mapping[str, object] = field(default_factory=dict)

    def check(self) -> None:
        """Raises ValueError for settings that cannot work together, before anything is loaded."""
        unknown = set(self.stages) - {"plan", *STAGES}
        if unknown:
            raise ValueError(f"stages names {min(unknown)!r}: use some of plan, {', '.join(STAGES)}")
        if isinstance(self.compress, Drop) and self.space.drops != "none":
            raise ValueError(
                f"space.drops={self.space.drops} is for compressors of layers, and compress=drop drops without it: set "
                "space.drops=none, or for levels and drops together compress=gptq or the like"
            )
        low, high = self.compress.span
        if self.space.drops != "none":  # with everything dropped no weight is left
            low, high = (0.0, high) if self.compress.metric == "bits" else (low, 1.0)
        for target in self.targets or (self.budget.target,):
            replace(self.budget, target=target).check(self.compress.metric, (low, high))
        check_export(self.export, self.compress, self.space)
        check_eval(self.eval)


def name_of(part: object) -> str:
    """What a compressor or a search is called in names and results."""
    return type(part).__name__.lower()
