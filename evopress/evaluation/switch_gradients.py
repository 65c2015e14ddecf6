"""Gradients at the outputs of all layers of a compressed model, collected one block at a time.

One forward pass keeps the states between the blocks. Then each block, from the last to the first, runs again with its
graph, and 1 + D gradients are propagated back through it: one of the KL, and one for each of D random directions in the
logits. Only the graph of one block is in memory at a time.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count

import torch
from jaxtyping import Float, Int
from torch import Tensor

from evopress.evaluation.compressible_model import CompressibleModel
from evopress.evaluation.fisher import fisher_probe
from evopress.evaluation.random_signs import random_signs
from evopress.models.hooks import watch_layers
from evopress.models.language_model import BlockKwargs, LanguageModel
from evopress.models.state_storage import StateMemory
from evopress.models.transfers import prefetched
from evopress.space.apply import EmbeddingAndHead
from evopress.space.choices import BlockChoice
from evopress.space.units import Profile

HEAD_TOKENS = 128
"""Tokens that go through the head at once."""


@dataclass(frozen=True)
class ForwardPass:
    """A forward pass at a profile.

    `choices` has the levels and dropped sub-blocks of each block. `states` has the hidden states before the first block
    and after every block.
    """

    choices: list[BlockChoice]
    embedding_and_head: EmbeddingAndHead
    states: list[Float[Tensor, "batch time hidden"]]
    kwargs: list[BlockKwargs]


@dataclass(frozen=True)
class HeadGradients:
    """The input of the head on a chunk of tokens, and the gradients at its input and at its output.

    The output is taken before the logits are scaled or softly capped. `p` and `q` are the probabilities of the dense
    and of the compressed model.
    """

    inputs: Float[Tensor, "tokens hidden"]
    input_gradients: Float[Tensor, "gradients tokens hidden"]
    logit_gradients: Float[Tensor, "gradients tokens vocabulary"]
    p: Float[Tensor, "tokens vocabulary"]
    q: Float[Tensor, "tokens vocabulary"]

    @property
    def kl(self) -> float:
        """KL(dense ‖ compressed), summed over the tokens."""
        return float(torch.xlogy(self.p, self.p / self.q.clamp(min=torch.finfo(self.q.dtype).tiny)).sum())


@dataclass(frozen=True)
class LayerGradients:
    """The weight and the input of one layer, and the gradients at its output.

    `positions` has the positions of the tokens that were routed to the layer's expert. It is None for a layer that sees
    all tokens.
    """

    weight: Float[Tensor, "rows cols"]
    inputs: Float[Tensor, "*tokens cols"]
    gradients: Float[Tensor, "gradients *tokens rows"]
    positions: Int[Tensor, " tokens"] | None


def forward_pass(model: CompressibleModel, profile: Profile | None, tokens: Int[Tensor, "batch time"]) -> ForwardPass:
    """Run the model at `profile` without a graph; None is the dense model."""
    return forward_passes(model, profile, parts=[tokens], memory=StateMemory())[0]


def forward_passes(
    model: CompressibleModel,
    profile: Profile | None,
    *,
    parts: Sequence[Int[Tensor, "batch time"]],
    memory: StateMemory,
) -> list[ForwardPass]:
    """A forward pass of each part of the tokens. All parts go through a block before any goes through the next one."""
    choices, embedding_and_head = model.choices(profile), model.embedding_and_head(profile)
    hidden, kwargs = _embedded(model, embedding_and_head, parts)
    memory_of_list = memory.share(1 + len(choices))
    lists = list(_states_by_block(model, choices, hidden=hidden, kwargs=kwargs, memory=memory_of_list))
    return [
        ForwardPass(choices, embedding_and_head, [states[part] for states in lists], kwargs[part])
        for part in range(len(parts))
    ]


def dense_states(
    model: CompressibleModel, *, parts: Sequence[Int[Tensor, "batch time"]], memory: StateMemory
) -> list[Float[Tensor, "batch time hidden"]]:
    """The states of the dense model after its last block, for each part of the tokens."""
    hidden, kwargs = _embedded(model, EmbeddingAndHead(), parts)
    lists = _states_by_block(model, model.choices(None), hidden=hidden, kwargs=kwargs, memory=memory.share(2))
    return deque(lists, maxlen=1).pop()


def _embedded(
    model: CompressibleModel, embedding_and_head: EmbeddingAndHead, parts: Sequence[Tensor]
) -> tuple[list[Tensor], list[list[BlockKwargs]]]:
    embedded = [model.lm.embed(tokens.to(model.lm.device), embedding_and_head.embeddings) for tokens in parts]
    return [hidden for hidden, _ in embedded], [kwargs for _, kwargs in embedded]


@torch.no_grad()
def _states_by_block(
    model: CompressibleModel,
    choices: Sequence[BlockChoice],
    *,
    hidden: Sequence[Tensor],
    kwargs: Sequence[list[BlockKwargs]],
    memory: StateMemory,
) -> Iterator[list[Tensor]]:
    """The states of all parts before the first block, and after each block."""
    states = memory.keep(hidden)
    yield states
    for block, choice in enumerate(choices):
        weights = model.block_weights(block, choice)
        inputs = zip(prefetched(states, model.lm.device), kwargs, strict=True)
        states = memory.keep(
            model.lm.run_block(block, state, of_part[block], weights=weights, dropped=choice.dropped)
            for state, of_part in inputs
        )
        model.prefetch(block + 1, choices)
        yield states


def head_gradients(
    lm: LanguageModel,
    normed: Float[Tensor, "tokens hidden"],
    dense_normed: Float[Tensor, "tokens hidden"],
    *,
    head: Tensor | None,
    draws: int,
    seed: int,
) -> Iterator[HeadGradients]:
    """Gradients of the KL, summed over tokens, and of `draws` random directions, for one chunk of tokens at a time.

    `normed` is the input of the head at the profile, and `dense_normed` its input in the dense model. `head` is the
    head's weight at the profile; None is the dense weight. The directions of a token depend on `seed` and on its place.
    """
    chunks = zip(normed.split(HEAD_TOKENS), dense_normed.split(HEAD_TOKENS), strict=True)
    for first_token, (chunk, dense_chunk) in zip(count(0, HEAD_TOKENS), chunks, strict=False):
        inputs = chunk.detach().requires_grad_()
        with torch.enable_grad():
            products = lm.head_products(inputs, head)
            logits = lm.logits_of(products)
        precision = torch.promote_types(logits.dtype, torch.float32)
        q = logits.detach().to(precision).softmax(-1)
        with torch.no_grad():
            p = lm.logits(dense_chunk).to(precision).softmax(-1)
        draw_signs = partial(random_signs, (len(q), q.shape[1]), seed=seed, first_row=first_token, device=q.device)
        directions = [q - p, *(fisher_probe(q, draw_signs(draw=draw)) for draw in range(draws))]
        gradients = [
            torch.autograd.grad(logits, [inputs, products], direction.to(logits.dtype), retain_graph=True)
            for direction in directions
        ]
        yield HeadGradients(
            inputs=inputs.detach(),
            input_gradients=torch.stack([input_gradient for input_gradient, _ in gradients]),
            logit_gradients=torch.stack([logit_gradient for _, logit_gradient in gradients]),
            p=p,
            q=q,
        )


def block_gradients(
    model: CompressibleModel, forward: ForwardPass, block: int, gradients: Sequence[Float[Tensor, "batch time hidden"]]
) -> tuple[list[Float[Tensor, "batch time hidden"]], dict[str, LayerGradients]]:
    """Propagate `gradients` from the output of a block to its input, and to its layers by full name.

    Layers of dropped sub-blocks are missing, and so are layers of an expert that no token was routed to.
    """
    choice = forward.choices[block]
    weights = model.block_weights(block, choice)
    state = forward.states[block].to(model.lm.device, non_blocking=True).detach().requires_grad_()
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def record(local: str, layer_input: Tensor, layer_output: Tensor) -> None:
        if local in weights:  # OPT runs its first MLP layer even if the MLP is dropped
            inputs[local], outputs[local] = layer_input.detach(), layer_output

    layers = {local: model.lm.linear(block, local) for local in model.lm.layers(block)}
    with torch.enable_grad(), watch_layers(layers, record):
        output = model.lm.run_block(block, state, forward.kwargs[block], weights=weights, dropped=choice.dropped)
    propagated = [
        torch.autograd.grad(output, [state, *outputs.values()], gradient, retain_graph=True) for gradient in gradients
    ]
    layer_gradients = {
        model.lm.layer_name(block, local): LayerGradients(
            weight=weights[local],
            inputs=inputs[local],
            gradients=torch.stack([output_gradients[index] for _, *output_gradients in propagated]),
            positions=model.lm.routed_tokens(block, local),
        )
        for index, local in enumerate(outputs)
    }
    return [state_gradient for state_gradient, *_ in propagated], layer_gradients
