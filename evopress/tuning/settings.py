"""How a compressed model is tuned."""

from math import ceil

from pydantic import Field

from evopress.runtime.config_class import config_class


@config_class
class Tuning:
    """Trains scales and norms with Adam, to match the dense model's predictions on text of the search split.

    `tokens` is the number of tokens of all steps together; 0 means no tuning. A step uses `windows` windows.
    `scales_lr` is the learning rate for scales, whose changes are relative to the stored scale. `norms_lr` is the
    learning rate for norms, whose changes are relative to the root mean square of their weights. A rate of 0 means that
    these parameters are not trained. The rate rises linearly over the share `warmup` of the steps, then falls as a
    cosine. KL on `validation_tokens` is measured before the first step and `checks` times after it. Tuning stops after
    `patience` checks in a row without a better one. `compare_uniform` also tunes the uniform profile, for comparison.
    `seed` determines the order of the windows. The state is saved at every check and every `save_minutes`.
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
        """The number of steps with windows of this length."""
        return ceil(self.tokens / (self.windows * window))

    def check_steps(self, window: int) -> list[int]:
        """The steps after which KL on validation tokens is measured."""
        steps = self.num_steps(window)
        return sorted({ceil(steps * check / self.checks) for check in range(1, self.checks + 1)})


STEP_COST = 5
"""The cost of a token in a step, in token equivalents.

The dense model, the compressed model and its recomputation take a forward pass each, and the backward pass counts 2.
"""


def token_equivalents(settings: Tuning, steps: int, checks: int, *, windows: tuple[int, int]) -> float:
    """The cost of this many steps and checks. `windows` is the shape of the validation split: (windows, tokens).

    The dense model runs once on the validation tokens. A dropped sub-block counts as if it ran.
    """
    count, length = windows
    validation_tokens = length * min(count, max(1, settings.validation_tokens // length))
    return float(STEP_COST * steps * settings.windows * length + (checks + 1) * validation_tokens)
