"""Gradients at the outputs of all layers of a compressed model, collected one block at a time.

One forward pass keeps the states between the blocks. Then each block, from the last to the first, runs again with its
graph, and 1 + D gradients are sent back through it: that of the KL, and those of D random directions in the logits.
Only the graph of one block is in memory at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from evopress.evaluation.compressible_model import CompressibleModel
from evopress.evaluation.fisher import fisher_probe
from evopress.models.hooks import watch_layers
from evopress.models.language_model import BlockKwargs, LanguageModel
from evopress.space.apply import BlockChoice, EmbeddingAndHead
from evopress.space.units import Profile

HEAD_TOKENS = 128
"""Tokens that go through the head at once."""


@dataclass(frozen=True)
class ForwardPass:
    """A forward pass at a profile: what each block ran with, and the states before the first block and after each."""

    choices: list[BlockChoice]
    embedding_and_head: EmbeddingAndHead
    states: list[Float[Tensor, "batch time hidden"]]
    kwargs: list[BlockKwargs]


@dataclass(frozen=True)
class HeadGradients:
    """The input of the head on a chunk of tokens, and the gradients at its input and at its output.

    The output is that of the head alone, before any soft cap.
    """

    inputs: Float[Tensor, "tokens hidden"]
    input_gradients: Float[Tensor, "gradients tokens hidden"]
    logit_gradients: Float[Tensor, "gradients tokens vocabulary"]


@dataclass(frozen=True)
class LayerGradients:
    """The weight and the input of one layer, and the gradients at its output.

    `positions` are those of the tokens that were routed to a layer of an expert; None for a layer that sees all tokens.
    """

    weight: Float[Tensor, "rows cols"]
    inputs: Float[Tensor, "*tokens cols"]
    gradients: Float[Tensor, "gradients *tokens rows"]
    positions: Int[Tensor, " tokens"] | None


def forward_pass(model: CompressibleModel, profile: Profile | None, tokens: Int[Tensor, "batch time"]) -> ForwardPass:
    """Run the model at `profile` without a graph; None is the dense model."""
    choices, embedding_and_head = model.choices(profile), model.embedding_and_head(profile)
    with torch.no_grad():
        hidden, kwargs = model.lm.embed(tokens, embedding_and_head.embeddings)
        states = [hidden]
        for block, choice in enumerate(choices):
            weights = model.block_weights(block, choice)
            states.append(model.lm.run_block(block, states[-1], kwargs[block], weights=weights, dropped=choice.dropped))
    return ForwardPass(choices, embedding_and_head, states, kwargs)


def head_gradients(
    lm: LanguageModel,
    normed: Float[Tensor, "tokens hidden"],
    dense_normed: Float[Tensor, "tokens hidden"],
    *,
    head: Tensor | None,
    draws: int,
    generator: torch.Generator,
) -> Iterator[HeadGradients]:
    """Gradients of the KL, summed over tokens, and of `draws` random directions, for one chunk of tokens at a time.

    `normed` enters the head at the profile, `dense_normed` that of the dense model. `head` is the head's weight at the
    profile, None for the dense one.
    """
    for chunk, dense_chunk in zip(normed.split(HEAD_TOKENS), dense_normed.split(HEAD_TOKENS), strict=True):
        inputs = chunk.detach().requires_grad_()
        with torch.enable_grad():
            products = lm.head_products(inputs, head)
            logits = lm.logits_of(products)
        q = logits.detach().float().softmax(-1)
        with torch.no_grad():
            p = lm.logits(dense_chunk).float().softmax(-1)
        directions = [q - p, *(fisher_probe(q, generator) for _ in range(draws))]
        gradients = [
            torch.autograd.grad(logits, [inputs, products], direction.to(logits.dtype), retain_graph=True)
            for direction in directions
        ]
        yield HeadGradients(
            inputs=inputs.detach(),
            input_gradients=torch.stack([at_inputs for at_inputs, _ in gradients]),
            logit_gradients=torch.stack([at_logits for _, at_logits in gradients]),
        )


def block_gradients(
    model: CompressibleModel, forward: ForwardPass, block: int, gradients: list[Float[Tensor, "batch time hidden"]]
) -> tuple[list[Float[Tensor, "batch time hidden"]], dict[str, LayerGradients]]:
    """From `gradients` at the output of a block, those at its input, and those at its layers by full name.

    Layers of dropped sub-blocks are missing, as are layers of an expert that no token was routed to.
    """
    choice = forward.choices[block]
    weights = model.block_weights(block, choice)
    state = forward.states[block].detach().requires_grad_()
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def record(local: str, layer_input: Tensor, layer_output: Tensor) -> None:
        if local in weights:  # OPT runs its first MLP layer even where the MLP is dropped
            inputs[local], outputs[local] = layer_input.detach(), layer_output

    layers = {local: model.lm.linear(block, local) for group in model.lm.layer_groups for local in group}
    with torch.enable_grad(), watch_layers(layers, record):
        output = model.lm.run_block(block, state, forward.kwargs[block], weights=weights, dropped=choice.dropped)
    at_state_and_outputs = [
        torch.autograd.grad(output, [state, *outputs.values()], gradient, retain_graph=True) for gradient in gradients
    ]
    layer_gradients = {
        model.lm.layer_name(block, local): LayerGradients(
            weight=weights[local],
            inputs=inputs[local],
            gradients=torch.stack([at_outputs[index] for _, *at_outputs in at_state_and_outputs]),
            positions=model.lm.routed_tokens(block, local),
        )
        for index, local in enumerate(outputs)
    }
    return [at_state for at_state, *_ in at_state_and_outputs], layer_gradients
