"""The task of one tuning."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jaxtyping import Int
from torch import Tensor

from evopress.evaluation.context import EvaluationContext
from evopress.space.units import Profile
from evopress.tuning.settings import Tuning
from evopress.tuning.tunable_model import TunableModel, tunable_model


@dataclass(frozen=True)
class TuningTask:
    """What is tuned, and how. The result depends only on `identity`, and is written to `path`.

    `is_over` is asked before every step, in the first process, whether to stop there. The state then says so, so that a
    run that is killed later stops at the same step.
    """

    settings: Tuning
    context: EvaluationContext
    profile: Profile
    path: Path
    identity: Mapping[str, object]
    is_over: Callable[[], bool] = lambda: False

    @property
    def num_steps(self) -> int:
        """The number of steps of the whole task."""
        return self.settings.num_steps(self.windows("search").shape[1])

    def windows(self, split: Literal["calibration", "search", "validation"]) -> Int[Tensor, "windows time"]:
        """The windows of a split, as far as they are used."""
        windows: Tensor = getattr(self.context.splits, split)
        return windows[:, : self.settings.excerpt]

    @property
    def state_path(self) -> Path:
        """The file of the saved state. It exists only while the task is unfinished."""
        return self.path.with_suffix(".partial.safetensors")

    @property
    def name(self) -> str:
        """The name in the results: tuned or uniform_tuned."""
        return self.path.stem

    def model(self) -> TunableModel:
        """The untuned model."""
        weights = self.context.evaluator.weights
        levels = None if weights is None else weights.database
        return tunable_model(
            self.context.evaluator.compressible, self.profile, levels, kinds=self.settings.learning_rates
        )

    def validation_kl(self, context: EvaluationContext) -> float:
        """Mean KL on validation tokens of the profile in `context`. Collective."""
        pool = self.windows("validation")
        tokens = pool[: max(1, self.settings.validation_tokens // pool.shape[1])]
        (divergence,) = context.evaluator.measure([self.profile], tokens)
        return divergence.mean_kl
