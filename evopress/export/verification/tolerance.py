"""Estimates how much the logits of the same weights may differ by rounding alone."""

from dataclasses import dataclass

import torch

from evopress.models.structure import ModelStructure

ROUNDINGS_PER_BLOCK = 12
"""Roundings of consecutive results in a block.

Attention: norm, projection, rotation, scores, weighted values, output, residual. MLP: norm, gate, product, output,
residual.
"""

ROUNDINGS_OUTSIDE = 2
"""The last norm and the head."""

MARGIN = 3
"""The accepted error, as a multiple of the estimated error.

The logits of SmolLM2 and of small random models of ten families, computed in float32, float16 and bfloat16, differ from
those computed in float64 by 0.04 to 0.75 times the estimate.
"""


@dataclass(frozen=True)
class Scale:
    """The size of logits: their largest magnitude, and their root mean square around the mean of each token."""

    largest: float
    spread: float


@dataclass(frozen=True)
class Tolerance:
    """The largest accepted difference of a logit, and the largest accepted KL per token in nats."""

    difference: float
    kl: float


def rounding_error(dtype: torch.dtype, *, num_blocks: int, longest_sum: int) -> float:
    """Estimate how much the logits of two runs with the same weights and tokens differ, relative to their spread.

    Engines, instruction sets and numbers of threads sum in different orders, so their results differ by rounding. Each
    result is a sum of n terms. It is accumulated in float32, with an error that grows like √n, and rounded to `dtype`:

        ε = u + u₃₂·√n    u, u₃₂: unit roundoff of `dtype` and of float32

    Each of the R roundings of a run is taken as independent and uniform in ±ε, so its variance is ε²/3. Over two runs
    the variances add up to 2·R·ε²/3.

    Args:
        longest_sum: n, the largest number of inputs of a layer.

    Returns:
        The root mean square of the difference, relative to the root mean square of the logits.

    Source: Higham and Mary, A New Approach to Probabilistic Rounding Error Analysis, SIAM J. Sci. Comput. 41(5), 2019.
    """
    unit = torch.finfo(dtype).eps / 2 + torch.finfo(torch.float32).eps / 2 * longest_sum**0.5
    roundings = ROUNDINGS_PER_BLOCK * num_blocks + ROUNDINGS_OUTSIDE
    return unit * (2 * roundings / 3) ** 0.5


def logit_tolerance(lm: ModelStructure, scale: Scale) -> Tolerance:
    """The differences that rounding can explain for this model in its compute type, with a margin.

    The KL of two distributions whose logits differ by d is half the variance of d, up to higher powers of d.
    """
    longest_sum = max(parameter.shape[-1] for parameter in lm.model.parameters() if parameter.ndim > 1)
    error = MARGIN * rounding_error(lm.dtype, num_blocks=lm.num_blocks, longest_sum=longest_sum)
    return Tolerance(difference=error * scale.largest, kl=(error * scale.spread) ** 2 / 2)
