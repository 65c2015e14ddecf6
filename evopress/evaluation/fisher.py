"""Random directions in the logits whose squared effects estimate the curvature of the KL divergence."""

import torch
from jaxtyping import Float
from torch import Tensor


def fisher_probe(
    q: Float[Tensor, "tokens vocabulary"], generator: torch.Generator
) -> Float[Tensor, "tokens vocabulary"]:
    """A random z per token with E z zᵀ = diag q − q qᵀ, the Fisher information of logits with softmax q.

    z = √q ⊙ ξ − q (√q · ξ), where ξ is a vector of random signs. The simpler choice, a one-hot sample from q minus q,
    has the same second moment, but the distribution of its squared effects has a much heavier tail.
    """
    signs = torch.randint(2, q.shape, generator=generator, dtype=torch.int8).to(q.device) * 2 - 1
    signed_roots = q.sqrt() * signs
    return signed_roots - q * signed_roots.sum(-1, keepdim=True)
