"""How much each calibration token counts in the Hessian of a group of layers: the gradient at their outputs.

The weight of a token is the root mean square of ‖∂ℓ/∂z‖ over the group's layers, where z is a layer's output for this
token in the dense model, and

    ℓ = Σ_t log q(y_t)     with one label y_t per token, drawn from the model's own prediction q.

The mean of the squared gradients over such labels is the Fisher information of the model. So to second order, a small
random error of an output raises the KL divergence from the dense model in proportion to the square of this weight. A
plain Hessian counts all tokens alike. But many tokens attend to the first one, for example, so its key and value matter
more than all others. The weight is not squared, because the squares of a single sample are noisy, and a few tokens
would decide alone.

Sources: arXiv 1806.04090 for sampled labels; arXiv 2505.07004 for Hessians that are weighted by squared gradients.
"""

import re
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from evopress.models.hooks import watch_layers
from evopress.models.language_model import BlockKwargs, LanguageModel
from evopress.runtime import signals
from evopress.runtime.progress import progress

HEAD_TOKENS = 128
"""Tokens that go through the head at once."""

LEAST_SHARE = 1e-6
"""The least weight of a token, as a share of the root mean square of the weights in its batch."""

LEAST_WEIGHT = 1e-20
"""The least weight of any token. Tokens without influence, in a block that only adds zeros, all get this weight. Their
Hessian is then a plain one, and float32 has enough digits for it.
"""

BatchWeights = list[dict[str, Tensor]]
"""The weights of a batch: float32 (tokens,), by block and `role`."""

TokenWeights = Mapping[int, list[BatchWeights]]
"""The weights of all batches of a process, by chunk."""


def role(local: str) -> str:
    """The local name of a layer without the number of its expert.

    All experts of a block share their weights, because a compressed model may route a token to other experts than the
    dense model.
    """
    return re.sub(r"\.\d+\.", ".*.", local)


def weigh_tokens(
    lm: LanguageModel,
    batches: Mapping[int, list[Tensor]],
    kwargs: list[BlockKwargs],
    uniforms: Mapping[int, Sequence[Tensor]],
) -> TokenWeights:
    """The weights of all tokens in all groups, by the role of a group's first layer.

    Each batch goes through the dense model forwards and backwards, with the graph of one block in memory at a time.

    Args:
        batches: Hidden states that enter the first block, (windows, time, hidden), by chunk.
        kwargs: The other arguments of each block.
        uniforms: A random number in [0, 1) for each token, (windows, time), by chunk. It decides the token's label.
    """
    places = [(chunk, index) for chunk, parts in batches.items() for index in range(len(parts))]
    weights: dict[int, list[BatchWeights]] = {chunk: [] for chunk in batches}
    for chunk, index in progress(places, desc="token weights", unit="batch"):
        signals.raise_if_interrupted()
        hidden, uniform = batches[chunk][index], uniforms[chunk][index]
        weights[chunk].append(_weigh_batch(lm, hidden.to(lm.device), kwargs, uniform.to(lm.device)))
    return weights


def _weigh_batch(
    lm: LanguageModel,
    hidden: Float[Tensor, "batch time hidden"],
    kwargs: Sequence[BlockKwargs],
    uniform: Float[Tensor, "batch time"],
) -> BatchWeights:
    states = [hidden]
    for block in range(lm.num_blocks):
        states.append(lm.run_block(block, states[-1], kwargs[block]))
    gradient = _gradient_of_labels(lm, states.pop(), uniform)
    weights = []
    for block in reversed(range(lm.num_blocks)):
        gradient, weights_of_block = _weigh_in_block(lm, block, states.pop(), kwargs[block], gradient)
        weights.append(weights_of_block)
    return weights[::-1]


def _weigh_in_block(
    lm: LanguageModel, block: int, state: Tensor, kwargs: BlockKwargs, gradient: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """The gradient at the input of a block, from the `gradient` at its output, and the token weights by role."""
    outputs: dict[str, Tensor] = {}
    role_of = {local: role(group[0]) for group in lm.layer_groups(block) for local in group}
    state = state.detach().requires_grad_()
    with (
        torch.enable_grad(),
        watch_layers(
            {local: lm.linear(block, local) for local in role_of},
            lambda local, _, output: outputs.update({local: output}),
        ),
    ):
        result = lm.run_block(block, state, kwargs)
    before, *gradients = torch.autograd.grad(result, [state, *outputs.values()], gradient)
    sums: dict[str, Tensor] = {}
    counts: dict[str, Tensor] = {}
    for local, at_output in zip(outputs, gradients, strict=True):
        squares = at_output.float().square().sum(-1).flatten()
        positions = lm.routed_tokens(block, local)
        if positions is None:
            positions = torch.arange(len(squares), device=squares.device)
        for total, values in ((sums, squares), (counts, torch.ones_like(squares))):
            total.setdefault(role_of[local], values.new_zeros(state[..., 0].numel())).index_add_(0, positions, values)
    return before, {name: _filled(sums[name], counts[name]) for name in sums}


def _filled(sums: Float[Tensor, " tokens"], counts: Float[Tensor, " tokens"]) -> Float[Tensor, " tokens"]:
    """The weight of every token. A token that no expert has seen gets the root mean square of the others."""
    weights = (sums / counts.clamp(min=1)).sqrt()
    average = (sums.sum() / counts.sum()).sqrt()
    least = (LEAST_SHARE * average).clamp(min=LEAST_WEIGHT)
    return torch.where(counts > 0, weights, average).clamp(min=least)


def _gradient_of_labels(
    lm: LanguageModel, state: Float[Tensor, "batch time hidden"], uniform: Float[Tensor, "batch time"]
) -> Float[Tensor, "batch time hidden"]:
    """∂ℓ/∂state after the last block."""
    gradients = []
    for chunk, numbers in zip(
        state.flatten(0, -2).split(HEAD_TOKENS), uniform.flatten().split(HEAD_TOKENS), strict=True
    ):
        inputs = chunk.detach().requires_grad_()
        with torch.enable_grad():
            log_q = lm.logits(lm.final_norm(inputs)).float().log_softmax(-1)
        labels = draw_labels(log_q.detach(), numbers)
        with torch.enable_grad():
            likelihood = log_q.gather(1, labels.unsqueeze(1)).sum()
        gradients.append(torch.autograd.grad(likelihood, inputs)[0])
    return torch.cat(gradients).view_as(state)


def draw_labels(log_q: Float[Tensor, "tokens vocabulary"], uniform: Float[Tensor, " tokens"]) -> Int[Tensor, " tokens"]:
    """The label of each token: where the cumulated probabilities exp(log_q) exceed its number in [0, 1)."""
    cumulative = log_q.exp().cumsum(-1)
    labels = torch.searchsorted(cumulative, uniform.unsqueeze(1) * cumulative[:, -1:], right=True).squeeze(1)
    return labels.clamp_(max=log_q.shape[-1] - 1)
