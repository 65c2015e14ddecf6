"""Compares logits with the expected ones, a limited number of tokens at a time."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from evopress.export.verification.tolerance import Scale

CHUNK_ELEMENTS = 2**24
"""Logits that are compared at a time, in float64: 128 MiB for each of the few tensors that are needed."""


@dataclass(frozen=True)
class LogitComparison:
    """How measured logits differ from the expected ones, whose size is `scale`.

    `kl` is KL(expected ‖ measured) per token in nats. `same_top_token` is the share of positions at which the same
    token has the largest logit.
    """

    max_difference: float
    kl: float
    same_top_token: float
    scale: Scale


def compare_logits(
    expected: Float[Tensor, "*batch vocabulary"], measured: Float[Tensor, "*batch vocabulary"]
) -> LogitComparison:
    """Compare logits in float64. The memory for this does not grow with the number of tokens."""
    differences, sizes = [], []
    squares, kl, same = 0.0, 0.0, 0
    for p, q in _chunks(expected, measured):
        differences.append((q - p).abs().max())
        sizes.append(p.abs().max())
        squares += float((p - p.mean(-1, keepdim=True)).square().mean(-1).sum())
        kl += float(_kl(p, q).sum())
        same += int((p.argmax(-1) == q.argmax(-1)).sum())
    num_tokens = expected.shape[:-1].numel()
    scale = Scale(float(torch.stack(sizes).max()), (squares / num_tokens) ** 0.5)
    return LogitComparison(float(torch.stack(differences).max()), kl / num_tokens, same / num_tokens, scale)


def _chunks(expected: Tensor, measured: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The same tokens of both, float64 (tokens, vocabulary)."""
    num_tokens = max(1, CHUNK_ELEMENTS // expected.shape[-1])
    parts = (logits.flatten(0, -2).split(num_tokens) for logits in (expected, measured))
    for p, q in zip(*parts, strict=True):
        yield p.double(), q.double()


def _kl(expected: Float[Tensor, "tokens vocabulary"], measured: Float[Tensor, "tokens vocabulary"]) -> Tensor:
    """KL(expected ‖ measured) of each token."""
    log_p, log_q = expected.log_softmax(-1), measured.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)
