"""One tuning: what is tuned, and how."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from evopress.evaluation.context import EvaluationContext
from evopress.space.units import Profile
from evopress.tuning.settings import Tuning
from evopress.tuning.tunable_model import TunableModel, tunable_model


@dataclass(frozen=True)
class TuningTask:
    """What is tuned, and how. `identity` is everything that the result depends on; `path` gets the result."""

    settings: Tuning
    context: EvaluationContext
    profile: Profile
    path: Path
    identity: Mapping[str, object]

    @property
    def num_steps(self) -> int:
        """The steps of the whole task."""
        return self.settings.num_steps(self.context.splits.search.shape[1])

    @property
    def state_path(self) -> Path:
        """Where the state is while the task is not finished."""
        return self.path.with_suffix(".partial.safetensors")

    @property
    def name(self) -> str:
        """As in the results: tuned, or uniform_tuned."""
        return self.path.stem

    def model(self) -> TunableModel:
        """The untuned model."""
        rates = {"scales": self.settings.scales_lr, "norms": self.settings.norms_lr}
        kinds = frozenset(kind for kind, rate in rates.items() if rate)
        return tunable_model(self.context.evaluator.compressible, self.profile, self.context.database, kinds=kinds)
