"""Random directions in the logits whose squared effects estimate the curvature of the KL divergence."""

from jaxtyping import Float, Int8
from torch import Tensor


def fisher_probe(
    q: Float[Tensor, "tokens vocabulary"], signs: Int8[Tensor, "tokens vocabulary"]
) -> Float[Tensor, "tokens vocabulary"]:
    """A random z per token with E z zᵀ = diag q − q qᵀ, the Fisher information of logits with softmax q.

    z = √q ⊙ ξ − q (√q · ξ), where ξ is a vector of random `signs`. The simpler choice, a one-hot sample from q minus q,
    has the same second moment, but the distribution of its squared effects has a much heavier tail.
    """
    signed_roots = q.sqrt() * signs
    return signed_roots - q * signed_roots.sum(-1, keepdim=True)
