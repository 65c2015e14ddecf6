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

SLICE_ELEMENTS = 2**19
"""Float32 logits that a CPU works on at once: 2 MB, which fit into its cache."""

MIN_SLICE_TOKENS = 8
"""With fewer tokens per slice, the overhead of the calls costs more time than the cache saves."""


@dataclass(frozen=True)
class Divergence:
    """Sums over tokens of KL(dense ‖ compressed) and of the cross-entropy of the next token, both in nats.

    The last token of a window has no next token, so `num_targets` is `num_tokens` minus one per window. `kl_at` is `kl`
    split by position in the window.
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
        """Mean KL at each position of a window. All windows must have the same length."""
        return [kl * len(self.kl_at) / self.num_tokens for kl in self.kl_at]

    @property
    def perplexity(self) -> float:
        mean = self.cross_entropy / self.num_targets
        return exp(mean) if mean < 700 else float("inf")


NO_DIVERGENCE = Divergence(0.0, 0.0, 0, 0)
"""The start value of a sum of divergences."""


@dataclass(frozen=True)
class FinalStates:
    """Normed final hidden states of a model, and the head that turns them into logits."""

    hidden: Float[Tensor, "batch time hidden"]
    head: Head


def divergences(
    teacher: FinalStates,
    students: Sequence[FinalStates],
    *,
    tokens: Int[Tensor, "batch time"],
    top_k: int | None = None,
    chunk_tokens: int = 64,
) -> list[Divergence]:
    """Compare each student with the teacher on the windows that their states were computed from.

    Only the logits of `chunk_tokens` tokens exist at a time. The teacher's logits are computed once for all students.
    With `top_k`, both distributions are restricted to the teacher's `top_k` most likely tokens and renormalised before
    the KL is computed. The cross-entropy is not restricted.
    """
    targets = _next_tokens(tokens).flatten()
    teacher_states = teacher.hidden.flatten(0, 1)
    student_states = [student.hidden.flatten(0, 1) for student in students]
    device = tokens.device
    kl = torch.zeros(len(students), len(targets), dtype=torch.float64, device=device)
    cross_entropy = torch.zeros(len(students), dtype=torch.float64, device=device)
    for start in range(0, len(targets), chunk_tokens):
        chunk = slice(start, start + chunk_tokens)
        reference = _Reference(teacher.head(teacher_states[chunk].to(device, non_blocking=True)), top_k)
        for index, (student, hidden) in enumerate(zip(students, student_states, strict=True)):
            kl[index, chunk], chunk_entropy = reference.divergence(
                student.head(hidden[chunk].to(device, non_blocking=True)), targets[chunk]
            )
            cross_entropy[index] += chunk_entropy
    num_tokens, num_targets = tokens.numel(), tokens.numel() - tokens.shape[0]
    kl_at = kl.unflatten(1, tokens.shape).sum(1)  # (students, time)
    return [
        Divergence(sum(student_kl_at), student_entropy, num_tokens, num_targets, tuple(student_kl_at))
        for student_kl_at, student_entropy in zip(kl_at.tolist(), cross_entropy.tolist(), strict=True)
    ]


class _Reference:
    """The teacher's distribution on one chunk of tokens.

    On a CPU, a chunk is split into slices whose temporaries fit into the cache. This saves two fifths of the time.
    """

    def __init__(self, logits: Float[Tensor, "tokens vocabulary"], top_k: int | None):
        rows = max(MIN_SLICE_TOKENS, SLICE_ELEMENTS // logits.shape[-1])
        self.num_rows = min(rows, len(logits)) if logits.device.type == "cpu" else len(logits)
        self.slices = [_Distribution(part, top_k) for part in logits.split(self.num_rows)]
        self.scratch = logits.new_empty(2, self.num_rows, logits.shape[-1], dtype=torch.float32)
        """Shared by all slices: on a CPU, allocating new memory would take longer than the arithmetic."""

    def divergence(
        self, logits: Float[Tensor, "tokens vocabulary"], targets: Int[Tensor, " tokens"]
    ) -> tuple[Float[Tensor, " tokens"], Float[Tensor, ""]]:
        """KL of each token, and the cross-entropy summed over the chunk. A target of -1 adds no cross-entropy."""
        slices = zip(self.slices, logits.split(self.num_rows), targets.split(self.num_rows), strict=True)
        pairs = [teacher.divergence(student, next_tokens, self.scratch) for teacher, student, next_tokens in slices]
        log_likelihood = torch.cat([target_log_q for _, target_log_q in pairs]).sum(dtype=torch.float64)
        return torch.cat([kl for kl, _ in pairs]), -log_likelihood


class _Distribution:
    """p = softmax of the teacher's logits on a few tokens, and log p, both in float32."""

    def __init__(self, logits: Float[Tensor, "tokens vocabulary"], top_k: int | None):
        log_p = logits.float().log_softmax(-1)
        self.kept = None if top_k is None else log_p.topk(min(top_k, log_p.shape[-1]), dim=-1).indices
        self.log_p = log_p if self.kept is None else log_p.gather(-1, self.kept).log_softmax(-1)
        self.p = self.log_p.exp()

    def divergence(
        self,
        logits: Float[Tensor, "tokens vocabulary"],
        targets: Int[Tensor, " tokens"],
        scratch: Float[Tensor, "2 rows vocabulary"],
    ) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " tokens"]]:
        """KL of each token, and log q of the next token (0 if the target is -1). Overwrites `scratch`."""
        float_logits, log_q = scratch[:, : len(logits)]
        torch.log_softmax(float_logits.copy_(logits), -1, out=log_q)
        target_log_q = log_q.gather(-1, targets.clamp(min=0)[:, None])[:, 0]
        if self.kept is not None:
            log_q = log_q.gather(-1, self.kept).log_softmax(-1)
        kl = log_q.sub_(self.log_p).mul_(self.p).sum(-1).neg_()  # Σ p log p − Σ p log q is less accurate
        return kl, target_log_q * (targets >= 0)


def _next_tokens(tokens: Int[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
    """The token that follows each token; -1 for the last token of a window."""
    return torch.cat([tokens[:, 1:], torch.full_like(tokens[:, :1], -1)], dim=1)
