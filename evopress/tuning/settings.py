"""How a compressed model is tuned."""

from math import ceil

from pydantic import Field

from evopress.runtime.config_class import config_class


@config_class
class Tuning:
    """Adam on scales and norms, towards the dense model's predictions on text of the search split.

    `tokens` is the number of tokens of all steps together; 0 means no tuning. A step uses `windows` windows.
    `scales_lr` is the learning rate of relative changes of scales, `norms_lr` that of norms, relative to the root mean
    square of their weights; 0 leaves the kind as it is. The rate rises over the share `warmup` of the steps and then
    falls as a cosine. KL on `validation_tokens` is measured `checks` times, and tuning stops after `patience` checks
    without a better one. `compare_uniform` also tunes the uniform profile, for comparison. `save_minutes` is the time
    between saved states.
    """

    tokens: int = Field(default=0, ge=0)
    windows: int = Field(default=1, gt=0)
    scales_lr: float = Field(default=2e-3, ge=0)
    norms_lr: float = Field(default=2e-3, ge=0)
    warmup: float = Field(default=0.1, ge=0, le=1)
    checks: int = Field(default=8, gt=0)
    patience: int = Field(default=4, gt=0)
    validation_tokens: int = Field(default=8192, gt=0)
    seed: int = 0
    compare_uniform: bool = False
    save_minutes: float = Field(default=5.0, gt=0)

    def num_steps(self, window: int) -> int:
        """The steps on windows of this length."""
        return ceil(self.tokens / (self.windows * window))

    def check_steps(self, window: int) -> list[int]:
        """After how many steps KL on validation tokens is measured."""
        steps = self.num_steps(window)
        return sorted({ceil(steps * check / self.checks) for check in range(1, self.checks + 1)})


STEP_COST = 5
"""Token equivalents of a token in a step: dense, compressed and recomputed forward passes, and one backward pass."""


def token_equivalents(settings: Tuning, steps: int, checks: int, *, windows: tuple[int, int]) -> float:
    """The cost of so many steps and checks, whose validation windows have the shape `windows`.

    The dense model runs once on the validation tokens. All blocks count as if they ran.
    """
    count, length = windows
    validation_tokens = length * min(count, max(1, settings.validation_tokens // length))
    return float(STEP_COST * steps * settings.windows * length + (checks + 1) * validation_tokens)
