"""Predicts how the KL divergence changes if one unit switches to another level: gradient and curvature at a profile.

A switch changes the output of a layer at token t by Δ_t = ΔW x_t; for tied layers, it changes all of their outputs.
There are N tokens and D draws of random directions z in the logits, whose covariance is the Fisher information of the
logits. With the gradients::

    g_t = ∂/∂out_t Σ_s KL_s(dense ‖ compressed)        γ_dt = ∂/∂out_t Σ_s z_dsᵀ logits_s

the change of the mean KL is, to first and to second order::

    first  = 1/N Σ_t g_tᵀ Δ_t
    second = 1/2ND Σ_dt (γ_dtᵀ Δ_t)²        half the curvature along Δ, without cross terms between tokens

At the dense model, g is zero. Interactions of two switches, computed as products of their γᵀΔ at the same token, were
tried as well, but the profiles chosen with them were worse: see experiments/search.

The gradients for the embeddings are taken at the first hidden state, and those for the head at its output.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch
from jaxtyping import Float, Int
from torch import Tensor

from evopress.evaluation.compressible_model import CompressibleModel
from evopress.evaluation.switch_gradients import (
    ForwardPass,
    block_gradients,
    dense_states,
    forward_passes,
    head_gradients,
)
from evopress.evaluation.switch_products import SwitchProducts
from evopress.models.state_storage import StateMemory
from evopress.models.transfers import prefetched
from evopress.runtime import distributed
from evopress.space.units import Profile, Space

PART_TOKENS = 512
"""Tokens of a part, which go through the model together. A longer window is a part by itself.

The processes share the parts.
"""


@dataclass(frozen=True)
class SwitchEffects:
    """Effects of all switches on the mean KL, in nats per token: one for each level of each unit, in order.

    The effect of the level that a unit already has is zero. Two more kinds of effects are zero: those of units that can
    be dropped, because a drop is too large a step for this approximation, and those of layers inside a dropped unit.
    `second` is half of a mean of squares, so it is not negative.
    """

    first: Float[Tensor, " switches"]
    second: Float[Tensor, " switches"]

    def __add__(self, other: "SwitchEffects") -> "SwitchEffects":
        return SwitchEffects(self.first + other.first, self.second + other.second)

    def __mul__(self, factor: float) -> "SwitchEffects":
        return SwitchEffects(self.first * factor, self.second * factor)

    def rows(self) -> list[list[float]]:
        """[switch]: first and second, with six significant digits."""
        return [[float(f"{value:.6g}") for value in row] for row in torch.stack([self.first, self.second], 1).tolist()]


def switch_effects(
    model: CompressibleModel,
    profile: Profile,
    *,
    parts: Sequence[Int[Tensor, "batch time"]],
    draws: int,
    rng: Random,
    memory: StateMemory | None = None,
) -> SwitchEffects:
    """The effect of every single switch away from `profile` on the mean KL. Every process must call this.

    Each part of the tokens gets its own seed from `rng`, so its random directions do not depend on the process that
    draws them. All parts go through a block before any goes through the next one, so each visit to a block decodes its
    levels once. `memory` is for the states and gradients of all parts; by default, there is no limit.
    """
    seeded_parts = distributed.share([(part, rng.getrandbits(63)) for part in parts])
    process_effects = _effects(model, profile, seeded_parts, draws=draws, memory=memory or StateMemory())
    weighted = [effects * part.numel() for effects, (part, _) in zip(process_effects, seeded_parts, strict=True)]
    all_effects = [effects for gathered in distributed.gather(weighted) for effects in gathered]
    return sum(all_effects[1:], all_effects[0]) * (1 / sum(part.numel() for part in parts))


def parts_of(tokens: Int[Tensor, "batch time"], most_tokens: int = PART_TOKENS) -> Sequence[Int[Tensor, "batch time"]]:
    """The parts of the tokens that go through the model together. No setting of memory may change them."""
    return tokens.split(max(1, min(PART_TOKENS, most_tokens) // tokens.shape[1]))


def token_equivalents(space: Space, num_tokens: int, draws: int) -> float:
    """The cost of all switch effects at a profile, in tokens that go through the whole model.

    There are three forward passes (dense, compressed, and compressed again with the graph) and 1 + `draws` backward
    passes, which cost twice as much each. Each level that a unit can switch to costs one product with a matrix of the
    unit's size.
    """
    products = sum(unit.num_weights * (len(unit.levels) - 1) for unit in space.units if unit.layers)
    return num_tokens * (3 + 2 * (1 + draws) + products / space.num_weights)


@torch.no_grad()
def _effects(
    model: CompressibleModel,
    profile: Profile,
    seeded_parts: Sequence[tuple[Int[Tensor, "batch time"], int]],
    *,
    draws: int,
    memory: StateMemory,
) -> list[SwitchEffects]:
    """The effects on each part of the tokens, whose random directions have a seed of their own."""
    device, choices, parts = model.lm.device, model.choices(profile), [part for part, _ in seeded_parts]
    memory_of_states, memory_of_gradients = memory.share(2), memory.share(4)  # gradients at both ends of a block
    all_products = [SwitchProducts(model, profile, num_gradients=1 + draws, num_tokens=part.numel()) for part in parts]
    students = forward_passes(model, profile, parts=parts, memory=memory_of_states)
    dense = dense_states(model, parts=parts, memory=memory_of_gradients)  # there are no gradients yet
    gradients = memory_of_gradients.keep(
        _through_head(products, student, dense_state, draws=draws, seed=seed)
        for products, student, dense_state, (_, seed) in zip(
            all_products, students, prefetched(dense, device), seeded_parts, strict=True
        )
    )
    for block in reversed(range(model.lm.num_blocks)):
        inputs = zip(all_products, students, prefetched(gradients, device), strict=True)
        gradients = memory_of_gradients.keep(
            _through_block(products, student, block, gradients_of_part)
            for products, student, gradients_of_part in inputs
        )
        if block:
            model.prefetch(block - 1, choices)
    for products, student, part, gradients_of_part in zip(
        all_products, students, parts, prefetched(gradients, device), strict=True
    ):
        products.add_embeddings(part.to(device), student.states[0].to(device, non_blocking=True), gradients_of_part)
        products.finish()
    return [SwitchEffects(products.first.cpu(), products.second.cpu()) for products in all_products]


def _through_block(
    products: SwitchProducts, student: ForwardPass, block: int, gradients: Float[Tensor, "gradients batch time hidden"]
) -> Float[Tensor, "gradients batch time hidden"]:
    """Add the switches of a block to `products`; returns the gradients at its input, given those at its output."""
    propagated, layers = block_gradients(products.model, student, block, gradients.unbind())
    products.add_block(block, layers)
    return torch.stack(propagated)


def _through_head(
    products: SwitchProducts,
    student: ForwardPass,
    dense_state: Float[Tensor, "batch time hidden"],
    *,
    draws: int,
    seed: int,
) -> Float[Tensor, "gradients batch time hidden"]:
    """Add the switches of the head to `products`; returns the gradients at the output of the last block."""
    lm = products.model.lm
    state = student.states[-1].to(lm.device, non_blocking=True).detach().requires_grad_()
    with torch.enable_grad():
        normed = lm.final_norm(state)
    chunks = head_gradients(
        lm,
        normed.detach().flatten(0, 1),
        lm.final_norm(dense_state).flatten(0, 1),
        head=student.embedding_and_head.head,
        draws=draws,
        seed=seed,
    )
    normed_gradients: list[Tensor] = []
    num_tokens = 0
    for chunk in chunks:
        products.add_head(chunk, first_token=num_tokens)
        normed_gradients.append(chunk.input_gradients)
        num_tokens += len(chunk.inputs)
    return torch.stack(
        [
            torch.autograd.grad(normed, state, gradient.view_as(normed), retain_graph=True)[0]
            for gradient in torch.cat(normed_gradients, 1)
        ]
    )
