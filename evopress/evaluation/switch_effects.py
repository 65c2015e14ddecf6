"""How the KL divergence would change if one unit went to another level: gradient and curvature at a compressed profile.

A switch changes the output of a layer at token t by Δ_t = ΔW x_t; that of several tied layers is all of them at once.
With N tokens, and D draws of z, random vectors whose covariance is the Fisher information of the logits::

    g_t = ∂/∂out_t mean KL(dense ‖ compressed)         γ_dt = ∂/∂out_t Σ_s z_dsᵀ logits_s
    first  = Σ_t g_tᵀ Δ_t                              the change to first order
    second = 1/2ND Σ_dt (γ_dtᵀ Δ_t)²                   half the curvature along Δ; products of two tokens are left out

At the dense model g is zero. What two switches add together was tried too, as products of their γᵀΔ at the same token:
profiles chosen with it were worse, see experiments/search.

One forward pass keeps the states between the blocks; then one block after another, from the last, is run again with
its graph and sent 1 + D gradients back, so that no more than the graph of one block is in memory. Where embeddings and
head are units, the gradients at the first state and at the logits are theirs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random

import torch
from jaxtyping import Float, Int
from torch import Tensor

from evopress.database.cache import DecodedLevels
from evopress.models.hooks import watch_layers
from evopress.models.language_model import BlockKwargs, LanguageModel
from evopress.runtime import distributed
from evopress.space.apply import (
    BlockChoice,
    EmbeddingAndHead,
    choices_by_block,
    embedding_and_head_levels,
    embedding_and_head_weights,
)
from evopress.space.units import OUTSIDE, Profile, Space

Rows = list[list[float]]

HEAD_TOKENS = 128
"""Tokens through the head at once."""

PART_TOKENS = 512
"""Tokens, or one window if it is longer, that go through the model together; processes share the parts."""


@dataclass(frozen=True)
class Effects:
    """Effects of all switches, for each level of each unit in turn; zero where a unit is at that level already.

    Zero as well for what may be dropped, as a drop is too large a step to foretell so, and for layers in a dropped one.
    `second` is the half of a square, so not negative. Both are (switches,), in nats per token.
    """

    first: Float[Tensor, " switches"]
    second: Float[Tensor, " switches"]

    def __add__(self, other: "Effects") -> "Effects":
        return Effects(self.first + other.first, self.second + other.second)

    def __mul__(self, factor: float) -> "Effects":
        return Effects(self.first * factor, self.second * factor)

    def rows(self) -> Rows:
        """[switch]: first and second, with six significant digits."""
        return [[float(f"{value:.6g}") for value in row] for row in torch.stack([self.first, self.second], 1).tolist()]


def switch_effects(
    lm: LanguageModel,
    space: Space,
    weights: DecodedLevels | None,
    profile: Profile,
    tokens: Int[Tensor, "batch time"],
    *,
    draws: int,
    rng: Random,
    part_tokens: int = PART_TOKENS,
) -> Effects:
    """What every single switch away from `profile` would do to the mean KL on `tokens`; collective.

    `rng` seeds the z of each part, so that they do not depend on the process that draws them.
    """
    parts = tokens.split(max(1, part_tokens // tokens.shape[1]))
    seeded = [(part, rng.getrandbits(63)) for part in parts]
    own = [
        _Pass(lm, space, weights, profile, part.to(lm.device)).effects(draws, torch.Generator().manual_seed(seed))
        * part.numel()
        for part, seed in distributed.share(seeded)
    ]
    found = [effects for of_process in distributed.gather(own) for effects in of_process]
    return sum(found[1:], found[0]) * (1 / tokens.numel())


def token_equivalents(space: Space, num_tokens: int, draws: int) -> float:
    """What a table costs in tokens through the whole model.

    Three forward passes (dense, compressed, and once more with the graph), 1 + `draws` backward passes that count two
    each, and a product as large as the unit for every level it could go to.
    """
    products = sum(unit.num_weights * (len(unit.levels) - 1) for unit in space.units if unit.layers)
    return num_tokens * (3 + 2 * (1 + draws) + products / space.num_weights)


@dataclass(frozen=True)
class _Pass:
    """One way forward and back through the model at `profile`."""

    lm: LanguageModel
    space: Space
    weights: DecodedLevels | None
    profile: Profile
    tokens: Int[Tensor, "batch time"]

    def effects(self, draws: int, generator: torch.Generator) -> Effects:
        samples = self._samples(draws, generator)
        return Effects(samples[:, 0].mean(1).cpu(), samples[:, 1:].square().mean((1, 2)).cpu() / 2)

    def _samples(self, draws: int, generator: torch.Generator) -> Float[Tensor, "switches gradients tokens"]:
        """gᵀΔ, then γᵀΔ of each draw; not divided by the number of tokens yet."""
        choices = choices_by_block(self.space, self.lm, self.profile)
        own = embedding_and_head_weights(self.lm, self.weights, embedding_and_head_levels(self.space, self.profile))
        states, kwargs = self._forward(choices, own)
        dense, _ = self._forward([BlockChoice() for _ in choices], EmbeddingAndHead())
        gradients, at_head = self._head(states[-1], dense[-1], own, draws, generator)
        starts = [0]
        for unit in self.space.units:
            starts.append(starts[-1] + len(unit.levels))
        samples = states[-1].new_zeros(starts[-1], 1 + draws, self.tokens.numel(), dtype=torch.float32)
        for block in reversed(range(self.lm.num_blocks)):
            gradients, found = self._layers(block, choices[block], states[block], gradients, kwargs[block])
            for (index, level), values in found.items():
                samples[starts[index] + level] += values
        for (index, level), values in (*at_head.items(), *self._embeddings(states[0], gradients).items()):
            samples[starts[index] + level] += values
        return samples

    @torch.no_grad()
    def _forward(self, choices: list[BlockChoice], own: EmbeddingAndHead) -> tuple[list[Tensor], list[BlockKwargs]]:
        """The states before the first block and after each one."""
        hidden, kwargs = self.lm.embed(self.tokens, own.embeddings)
        states = [hidden]
        for block, choice in enumerate(choices):
            states.append(
                self.lm.run_block(
                    block, states[-1], kwargs[block], weights=self._dense(block, choice), dropped=choice.dropped
                )
            )
        return states, kwargs

    def _dense(self, block: int, choice: BlockChoice) -> dict[str, Tensor]:
        return {local: self._weight(block, local, level) for local, level in choice.levels}

    def _weight(self, block: int, local: str, level: int) -> Tensor:
        if self.weights is None:
            raise ValueError("this space has layers but no database was given")
        return self.weights.get(block, self.lm.layer_name(block, local), level)

    def _switches(self, name: str) -> Iterator[tuple[int, int, Tensor]]:
        """Unit, level and weight of each level that the embeddings or the head may go to."""
        for index, unit in enumerate(self.space.units):
            for level in range(len(unit.levels)) if name in unit.layers else ():
                if level != self.profile[index] and self.weights is not None:
                    yield index, level, self.weights.get(OUTSIDE, name, level)

    @torch.no_grad()
    def _embeddings(self, state: Tensor, gradients: list[Tensor]) -> dict[tuple[int, int], Tensor]:
        """Per (unit, level) of the embeddings γᵀΔ for each gradient and token; `state` enters the first block."""
        slopes = torch.stack(gradients)
        return {
            (index, level): (slopes * (self.lm.embed(self.tokens, weight)[0] - state)).sum(-1).float().flatten(1)
            for index, level, weight in self._switches(self.lm.embedding_and_head[0])
        }

    def _head(
        self, last: Tensor, dense: Tensor, own: EmbeddingAndHead, draws: int, generator: torch.Generator
    ) -> tuple[list[Tensor], dict[tuple[int, int], Tensor]]:
        """Gradients at the last state: of the summed KL, and of the logits along each draw.

        And per (unit, level) of the head γᵀΔ for each gradient and token.
        """
        last = last.detach().requires_grad_()
        with torch.enable_grad():
            normed = self.lm.final_norm(last)
        with torch.no_grad():
            reference = self.lm.final_norm(dense)
        inner = normed.detach().flatten(0, 1)
        slopes: list[Tensor] = []
        switches: dict[tuple[int, int], list[Tensor]] = {}
        for states, references in zip(
            inner.split(HEAD_TOKENS), reference.flatten(0, 1).split(HEAD_TOKENS), strict=True
        ):
            at_states, at_logits = self._slopes(states, references, own, draws, generator)
            slopes.append(at_states)
            for switch, values in self._head_switches(states, at_logits, own).items():
                switches.setdefault(switch, []).append(values)
        found = {switch: torch.cat(values, 1) for switch, values in switches.items()}
        return [
            torch.autograd.grad(normed, last, slope.view_as(normed), retain_graph=True)[0]
            for slope in torch.cat(slopes, 1)
        ], found

    @torch.no_grad()
    def _head_switches(self, states: Tensor, slopes: Tensor, own: EmbeddingAndHead) -> dict[tuple[int, int], Tensor]:
        """For one chunk of tokens, from slopes (gradients, tokens, vocabulary): (gradients, tokens) per switch."""
        found = {}
        for index, level, weight in self._switches(self.lm.embedding_and_head[-1]):
            assert own.head is not None
            found[index, level] = (slopes * (states @ (weight - own.head).T)).sum(-1).float()
        return found

    def _slopes(
        self, states: Tensor, references: Tensor, own: EmbeddingAndHead, draws: int, generator: torch.Generator
    ) -> tuple[Float[Tensor, "gradients tokens hidden"], Float[Tensor, "gradients tokens vocabulary"]]:
        """The same for one chunk of tokens, at what the head reads and at what it gives, before a soft cap."""
        states = states.requires_grad_()
        with torch.enable_grad():
            raw = self.lm.uncapped_logits(states, own.head)
            logits = self.lm.cap_logits(raw)
        q = logits.detach().float().softmax(-1)
        with torch.no_grad():
            p = self.lm.logits(references).float().softmax(-1)
        slopes = [q - p, *(fisher_probe(q, generator) for _ in range(draws))]
        backs = [torch.autograd.grad(logits, [states, raw], s.to(logits.dtype), retain_graph=True) for s in slopes]
        return torch.stack([back[0] for back in backs]), torch.stack([back[1] for back in backs])

    def _layers(
        self, block: int, choice: BlockChoice, state: Tensor, gradients: list[Tensor], kwargs: BlockKwargs
    ) -> tuple[list[Tensor], dict[tuple[int, int], Tensor]]:
        """Gradients at the input of a block, and per (unit, level) γᵀ ΔW x for each gradient and token."""
        current = self._dense(block, choice)
        state = state.detach().requires_grad_()
        with torch.enable_grad(), _watched(self.lm, block) as seen:
            output = self.lm.run_block(block, state, kwargs, weights=current, dropped=choice.dropped)
        names = [name for name in seen if name in current]  # others run for a sub-block that is dropped
        backs = [
            torch.autograd.grad(output, [state, *(seen[name][1] for name in names)], gradient, retain_graph=True)
            for gradient in gradients
        ]
        slopes = {name: torch.stack([back[1 + i] for back in backs]) for i, name in enumerate(names)}
        found: dict[tuple[int, int], Tensor] = {}
        for index, local in self._members(block):
            for level in range(len(self.space.units[index].levels)):
                if level != self.profile[index] and local in slopes:  # an expert may see no token
                    change = seen[local][0] @ (self._weight(block, local, level) - current[local]).T
                    values = self._at_all_tokens(block, local, (slopes[local] * change).sum(-1).float().flatten(1))
                    found[index, level] = found.get((index, level), torch.zeros_like(values)) + values
        return [back[0] for back in backs], found

    def _at_all_tokens(self, block: int, local: str, values: Tensor) -> Tensor:
        """`values` (gradients, tokens of the layer) with zeros at the tokens that were not routed to it."""
        routed = self.lm.routed_tokens(block, local)
        if routed is None:
            return values
        return values.new_zeros(len(values), self.tokens.numel()).index_copy(1, routed, values)

    def _members(self, block: int) -> Iterator[tuple[int, str]]:
        """Units of a block with the local names of their layers."""
        prefix = len(self.lm.block_names[block]) + 1
        for index, unit in enumerate(self.space.units):
            if block in unit.blocks:
                for layer in unit.layers:
                    yield index, layer[prefix:]


def fisher_probe(
    q: Float[Tensor, "tokens vocabulary"], generator: torch.Generator
) -> Float[Tensor, "tokens vocabulary"]:
    """Random z per row with E z zᵀ = diag q − q qᵀ, the Fisher information of logits: √q ⊙ ξ − q (√q · ξ), ξ of signs.

    An outcome drawn from q, less q, has the same second moment, but its squares have a far heavier tail.
    """
    signs = torch.randint(2, q.shape, generator=generator, dtype=torch.int8).to(q.device) * 2 - 1
    spread = q.sqrt() * signs
    return spread - q * spread.sum(-1, keepdim=True)


@contextmanager
def _watched(lm: LanguageModel, block: int) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """While open, input (detached) and output of every layer of the block that runs are noted, by local name."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def record(local: str, inputs: Tensor, output: Tensor) -> None:
        seen[local] = (inputs.detach(), output)

    layers = {local: lm.linear(block, local) for group in lm.layer_groups for local in group}
    with watch_layers(layers, record):
        yield seen
