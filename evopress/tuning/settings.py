"""How a compressed model is tuned."""

from dataclasses import replace
from math import ceil
from typing import Literal

from pydantic import Field

from evopress.runtime.config_class import config_class

RESOLVE_CHECKS = 5
"""How often the loss of a block is measured on held-out windows while its rounding is learnt."""

MOST_HELD_OUT = 8
"""At most this many windows are held out while rounding is learnt."""


DISTANCE_OF_STEP = 0.005
"""The largest mean rate for offsets. Four times as much made the loss of some blocks of SmolLM2-135M rise."""

Kind = Literal["scales", "norms", "weights"]
"""A kind of parameter that is trained."""


@config_class
class Tuning:
    """Trains scales and norms with Adam, to match the dense model's predictions on text of the search split.

    `tokens` is the number of tokens of all steps together; 0 means no tuning. A step uses `windows` windows. Here and
    below, only the first `excerpt` tokens of every window are used; None stands for all.
    `scales_lr` is the learning rate for scales, whose changes are relative to the stored scale. `norms_lr` is the
    learning rate for norms, whose changes are relative to the root mean square of their weights. `weights_lr`, relative
    likewise, is for the kept weights of sparse levels and for the dense weights next to dropped sub-blocks. A rate of 0
    means that these parameters are not trained. The rate rises linearly over the share `warmup` of the steps, then
    falls as a cosine. KL on `validation_tokens` is measured before the first step and `checks` times after it. Tuning
    stops after `patience` checks in a row without a better one. `compare_uniform` also tunes the uniform profile, for
    comparison. `seed` determines the order of the windows. The state is saved at every check and every `save_minutes`.

    With `resolve`, the codes and ranges of integer levels are learnt first, block by block, on calibration text
    (`signround`). A job replaces `auto` by that if its levels have such codes, else by `none`. This takes
    `resolve_steps` steps of `resolve_windows` windows for each block. The rates of all steps add up to
    `resolve_distance` (or to 0.005 per step, if that is less), in steps of the grid, for the offsets of weights, and to
    `resolve_range_distance` for the factors on the ends of ranges. Scales and norms then have less left to gain. So
    they are trained on at most `rounded_tokens` tokens, and if learnt rounding is kept, the learning rates are
    multiplied by `rounded_rate`.
    """

    tokens: int = Field(default=0, ge=0)
    windows: int = Field(default=1, gt=0)
    scales_lr: float = Field(default=2e-3, ge=0)
    norms_lr: float = Field(default=2e-3, ge=0)
    weights_lr: float = Field(default=0.0, ge=0)
    warmup: float = Field(default=0.1, ge=0, le=1)
    checks: int = Field(default=8, gt=0)
    patience: int = Field(default=4, gt=0)
    excerpt: int | None = Field(default=None, gt=0)
    validation_tokens: int = Field(default=8192, gt=0)
    seed: int = 0
    compare_uniform: bool = False
    save_minutes: float = Field(default=5.0, gt=0)
    resolve: Literal["none", "signround", "auto"] = "none"
    rounded_tokens: int | None = Field(default=None, gt=0)
    rounded_rate: float = Field(default=0.25, gt=0)
    resolve_steps: int = Field(default=50, gt=0)
    resolve_windows: int = Field(default=4, gt=0)
    resolve_distance: float = Field(default=0.2, gt=0)
    resolve_range_distance: float = Field(default=0.025, ge=0)

    @property
    def learning_rates(self) -> dict[Kind, float]:
        """The learning rate of each kind of parameter that is trained."""
        rates: dict[Kind, float] = {"scales": self.scales_lr, "norms": self.norms_lr, "weights": self.weights_lr}
        return {kind: rate for kind, rate in rates.items() if rate}

    def window(self, length: int) -> int:
        """How many tokens of a window of this length are used."""
        return length if self.excerpt is None else min(self.excerpt, length)

    def after_rounding(self) -> "Tuning":
        """The settings for a model whose rounding was learnt."""
        rate = self.rounded_rate
        return replace(self, scales_lr=rate * self.scales_lr, norms_lr=rate * self.norms_lr)

    @property
    def does_nothing(self) -> bool:
        """Whether the model stays as the search left it."""
        return self.tokens == 0 and self.resolve == "none"

    def num_resolve_windows(self, available: int) -> int:
        """How many of the available calibration windows are used to learn the rounding: the steps take each twice."""
        return min(available, ceil(self.resolve_steps * self.resolve_windows / 2) + MOST_HELD_OUT)

    @property
    def rounding_distance(self) -> float:
        """What the rates for offsets add up to: `resolve_distance`, or less if the steps are few."""
        return min(self.resolve_distance, DISTANCE_OF_STEP * self.resolve_steps)

    @property
    def resolve_check_steps(self) -> list[int]:
        """After how many steps the loss on held-out windows is measured."""
        return sorted({ceil(self.resolve_steps * check / RESOLVE_CHECKS) for check in range(1, RESOLVE_CHECKS + 1)})

    def num_steps(self, window: int) -> int:
        """The number of steps with windows of this length."""
        tokens = self.tokens
        if self.resolve != "none" and self.rounded_tokens is not None:
            tokens = min(tokens, self.rounded_tokens)
        return ceil(tokens / (self.windows * window))

    def check_steps(self, window: int) -> list[int]:
        """The steps after which KL on validation tokens is measured."""
        steps = self.num_steps(window)
        return sorted({ceil(steps * check / self.checks) for check in range(1, self.checks + 1)})


STEP_COST = 5
"""The cost of a token in a step, in token equivalents.

The dense model, the compressed model and its recomputation take a forward pass each, and the backward pass counts 2.
"""

RESOLVE_STEP_COST = 3
"""Token equivalents of a token in a step of all blocks whose rounding is learnt: one forward and one backward pass."""


def num_held_out(num_windows: int) -> int:
    """How many of the windows are held out while rounding is learnt: an eighth, but at least one."""
    return min(MOST_HELD_OUT, max(1, num_windows // 8))


def resolving_equivalents(
    settings: Tuning, *, calibration: tuple[int, int], validation: tuple[int, int], share: float = 1.0
) -> float:
    """The token equivalents of learning the rounding of a share of the blocks, on calibration windows of this shape.

    The dense and the compressed model run once on the windows that are used, and the blocks run on the held-out windows
    at every check. In the end, KL is measured twice on the validation windows. Dropped parts count as if they ran.
    """
    count, length = settings.num_resolve_windows(calibration[0]), calibration[1]
    steps = RESOLVE_STEP_COST * settings.resolve_steps * settings.resolve_windows
    checks = (1 + len(settings.resolve_check_steps)) * num_held_out(count)
    return float(share * length * (steps + checks + 2 * count) + 3 * _validation_tokens(settings, validation))


def token_equivalents(settings: Tuning, steps: int, checks: int, *, windows: tuple[int, int]) -> float:
    """The cost of this many steps and checks. `windows` is the shape of the validation split: (windows, tokens).

    The dense model runs once on the validation tokens. A dropped sub-block counts as if it ran.
    """
    step_tokens = settings.windows * windows[1]
    return float(STEP_COST * steps * step_tokens + (checks + 1) * _validation_tokens(settings, windows))


def _validation_tokens(settings: Tuning, windows: tuple[int, int]) -> int:
    """The tokens of a check, from validation windows of this shape."""
    count, length = windows
    return length * min(count, max(1, settings.validation_tokens // length))
