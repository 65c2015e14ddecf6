"""How far a compressed model is from the dense one: KL divergence and cross-entropy, in chunks, in float32."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from math import exp

import torch
from jaxtyping import Float, Int
from torch import Tensor

Head = Callable[[Tensor], Tensor]
"""Maps normed hidden states (tokens, hidden) to logits (tokens, vocabulary)."""

CACHED_ELEMENTS = 2**19
"""Logits in float32 that are worked on at once on a CPU: 2 MB."""


@dataclass(frozen=True)
class Divergence:
    """Sums over tokens of KL(dense ‖ compressed) and of the cross-entropy of the next token, both in nats.

    The last token of a window has no next token in it, so `num_targets` is `num_tokens` less one per window. `kl_at` is
    `kl` by position in the window.
    """

    kl: float
    cross_entropy: float
    num_tokens: int
    num_targets: int
    kl_at: tuple[float, ...] = ()

    def __add__(self, other: "Divergence") -> "Divergence":
        return Divergence(
            self.kl + other.kl,
            self.cross_entropy + other.cross_entropy,
            self.num_tokens + other.num_tokens,
            self.num_targets + other.num_targets,
            tuple(a + b for a, b in zip_longest(self.kl_at, other.kl_at, fillvalue=0.0)),
        )

    @property
    def mean_kl(self) -> float:
        return self.kl / self.num_tokens

    @property
    def kl_by_position(self) -> list[float]:
        """Mean KL at each position of a window, all windows being equally long."""
        return [kl * len(self.kl_at) / self.num_tokens for kl in self.kl_at]

    @property
    def perplexity(self) -> float:
        mean = self.cross_entropy / self.num_targets
        return exp(mean) if mean < 700 else float("inf")


NO_DIVERGENCE = Divergence(0.0, 0.0, 0, 0)
"""What a sum of divergences starts from."""


def divergences(
    teacher: Float[Tensor, "batch time hidden"],
    students: list[Float[Tensor, "batch time hidden"]],
    tokens: Int[Tensor, "batch time"],
    head: Head,
    *,
    student_heads: Sequence[Head] | None = None,
    top_k: int | None = None,
    chunk_tokens: int = 64,
) -> list[Divergence]:
    """Compare each student with the teacher; both are given as normed final hidden states.

    `head` is the teacher's, and the students' as well unless they bring their own as `student_heads`.
    The logits of a chunk of tokens exist at a time, those of the teacher once for all students. With `top_k` both
    distributions are restricted to the teacher's `top_k` most likely tokens and renormalised; cross-entropy is not.
    """
    flat_teacher = teacher.flatten(0, 1)
    flat_students = [student.flatten(0, 1) for student in students]
    heads = student_heads or [head] * len(students)
    targets = _next_tokens(tokens).flatten()
    kl = torch.zeros(len(students), len(targets), dtype=torch.float64, device=teacher.device)
    cross_entropy = torch.zeros(len(students), dtype=torch.float64, device=teacher.device)
    for start in range(0, len(targets), chunk_tokens):
        span = slice(start, start + chunk_tokens)
        reference = _Reference(head(flat_teacher[span]), top_k)
        for index, (student, own) in enumerate(zip(flat_students, heads, strict=True)):
            kl[index, span], of_chunk = reference.compare(own(student[span]), targets[span])
            cross_entropy[index] += of_chunk
    num_tokens, num_targets = tokens.numel(), tokens.numel() - tokens.shape[0]
    return [
        Divergence(sum(at), of_student, num_tokens, num_targets, tuple(at))
        for at, of_student in zip(kl.unflatten(1, tokens.shape).sum(1).tolist(), cross_entropy.tolist(), strict=True)
    ]


class _Reference:
    """The teacher's distribution on one chunk, ready to be compared with.

    On a CPU a chunk is worked off in slices whose temporaries stay in the cache, which saves two fifths of
    the time. Fewer than 8 tokens at once would cost more in calls than the cache gives.
    """

    def __init__(self, logits: Float[Tensor, "tokens vocabulary"], top_k: int | None):
        rows = max(8, CACHED_ELEMENTS // logits.shape[-1])
        self.num_rows = min(rows, len(logits)) if logits.device.type == "cpu" else len(logits)
        self.parts = [_Distribution(part, top_k) for part in logits.split(self.num_rows)]
        self.scratch = logits.new_empty(2, self.num_rows, logits.shape[-1], dtype=torch.float32)
        """Used by every slice: fresh memory costs a CPU more time than the arithmetic in it."""

    def compare(
        self, logits: Float[Tensor, "tokens vocabulary"], targets: Int[Tensor, " tokens"]
    ) -> tuple[Float[Tensor, " tokens"], Float[Tensor, ""]]:
        """KL of each token, and the cross-entropy summed over the chunk; targets of -1 are left out of the latter."""
        slices = zip(self.parts, logits.split(self.num_rows), targets.split(self.num_rows), strict=True)
        pairs = [part.compare(of_part, next_tokens, self.scratch) for part, of_part, next_tokens in slices]
        return torch.cat([kl for kl, _ in pairs]), -torch.cat([target for _, target in pairs]).sum(dtype=torch.float64)


class _Distribution:
    """p = softmax of the teacher's logits on a few tokens, and its logarithm; float32."""

    def __init__(self, logits: Float[Tensor, "tokens vocabulary"], top_k: int | None):
        log_p = logits.float().log_softmax(-1)
        self.kept = None if top_k is None else log_p.topk(min(top_k, log_p.shape[-1]), dim=-1).indices
        self.log_p = log_p if self.kept is None else log_p.gather(-1, self.kept).log_softmax(-1)
        self.p = self.log_p.exp()

    def compare(
        self,
        logits: Float[Tensor, "tokens vocabulary"],
        targets: Int[Tensor, " tokens"],
        scratch: Float[Tensor, "2 rows vocabulary"],
    ) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " tokens"]]:
        """KL of each token, and log q of the token that follows, 0 where there is none. Overwrites `scratch`."""
        wide, log_q = scratch[:, : len(logits)]
        torch.log_softmax(wide.copy_(logits), -1, out=log_q)
        target_log_q = log_q.gather(-1, targets.clamp(min=0)[:, None])[:, 0]
        if self.kept is not None:
            log_q = log_q.gather(-1, self.kept).log_softmax(-1)
        kl = log_q.sub_(self.log_p).mul_(self.p).sum(-1).neg_()  # Σ p log p − Σ p log q would lose digits
        return kl, target_log_q * (targets >= 0)


def _next_tokens(tokens: Int[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
    """The token after each one, -1 after the last of a window."""
    return torch.cat([tokens[:, 1:], torch.full_like(tokens[:, :1], -1)], dim=1)
