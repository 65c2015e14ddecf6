"""The gradients of the KL from the dense model with respect to all parameters, one block at a time.

::

    run forward without a graph, and keep the hidden states between the blocks
    backpropagate through the head and the final norm
    for each block, from the last to the first:
        decode its weights again, and run it on its input with a graph
        backpropagate to its parameters and its input

Each group of gradients is yielded before the next one is computed. So only the graph of one block is in memory at a
time. The caller may update the parameters of a block immediately, because the blocks before it do not use them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from evopress.evaluation.compressible_model import CompressibleModel
from evopress.evaluation.switch_gradients import ForwardPass, forward_pass, head_gradients
from evopress.runtime import distributed
from evopress.tuning.parameters import final_norm_name
from evopress.tuning.tunable_model import TunableModel


@dataclass(frozen=True)
class Gradients:
    """Gradients of a KL by the name of the parameter. `kl` is the KL itself; it is 0 in all groups but the first."""

    by_name: dict[str, Tensor]
    kl: float = 0.0


def gradient_groups(model: TunableModel, tokens: Int[Tensor, "windows time"]) -> Iterator[Gradients]:
    """Yield the gradients of the mean KL for the final norm, then for each block from last to first. Collective.

    The processes share the windows. Gradients are summed in the order of the windows, so the sums do not depend on the
    number of processes.
    """
    device, count = model.lm.device, tokens.numel()
    windows = [_Window(model, window.to(device)) for window in distributed.share(tokens.split(1))]
    yield _mean(model, [window.through_head() for window in windows], count)
    for block in reversed(range(model.lm.num_blocks)):
        yield _mean(model, [Gradients(window.through_block(block)) for window in windows], count)


def _mean(model: TunableModel, shared: list[Gradients], num_tokens: int) -> Gradients:
    """The sum over the windows of all processes, divided by the number of tokens."""
    if distributed.world_size() > 1:
        shared = [Gradients({n: g.cpu() for n, g in window.by_name.items()}, window.kl) for window in shared]
    windows = [window for of_process in distributed.gather(shared) for window in of_process]
    sums = dict(windows[0].by_name)
    for window in windows[1:]:
        sums = {name: total + window.by_name[name] for name, total in sums.items()}
    means = {name: (total / num_tokens).to(model.lm.device) for name, total in sums.items()}
    return Gradients(means, sum(window.kl for window in windows) / num_tokens)


class _Window:
    """Backpropagation through the model for one window. The gradients are those of the KL summed over its tokens."""

    def __init__(self, model: TunableModel, tokens: Int[Tensor, "1 time"]):
        self.model = model
        self.forward: ForwardPass = forward_pass(model, model.profile, tokens)
        dense = CompressibleModel(model.lm, model.space, model.weights)
        self.dense_state: Tensor = forward_pass(dense, None, tokens).states[-1]
        self.gradient: Float[Tensor, "1 time hidden"] = torch.zeros_like(self.dense_state)
        """At the output of the next block to backpropagate through."""

    def through_head(self) -> Gradients:
        """Backpropagate to the output of the last block and to the final norm."""
        lm, model = self.model.lm, self.model
        leaves = _leaves(model, [name for name in (final_norm_name(lm),) if name in model.changes])
        state = self.forward.states[-1].detach().requires_grad_()
        with torch.enable_grad():
            normed = lm.final_norm(state, model.final_norm_weight(leaves))
        with torch.no_grad():
            dense_normed = lm.final_norm(self.dense_state).flatten(0, 1)
        chunks = head_gradients(
            lm,
            normed.detach().flatten(0, 1),
            dense_normed,
            head=self.forward.embedding_and_head.head,
            draws=0,
            seed=0,
        )
        head_input_gradients, kl = [], 0.0
        for chunk in chunks:
            head_input_gradients.append(chunk.input_gradients[0])
            kl += chunk.kl
        gradient = torch.cat(head_input_gradients).view_as(normed)
        self.gradient, *leaf_gradients = torch.autograd.grad(normed, [state, *leaves.values()], gradient)
        return Gradients(dict(zip(leaves, leaf_gradients, strict=True)), kl)

    def through_block(self, block: int) -> dict[str, Tensor]:
        """Backpropagate to the input of a block and to its parameters. A parameter without influence gets zeros."""
        model, choice = self.model, self.forward.choices[block]
        leaves = _leaves(model, model.names_of_block(block))
        state = self.forward.states[block].detach().requires_grad_()
        with torch.enable_grad():
            weights = model.decoded(block, choice, leaves)
            output = model.lm.run_block(
                block, state, self.forward.kwargs[block], weights=weights, dropped=choice.dropped
            )
        inputs = [state, *leaves.values()]
        gradients = torch.autograd.grad(output, inputs, self.gradient, allow_unused=True, materialize_grads=True)
        self.gradient, *leaf_gradients = gradients
        return dict(zip(leaves, leaf_gradients, strict=True))


def _leaves(model: TunableModel, names: list[str]) -> dict[str, Tensor]:
    """The changes of these parameters, as leaves of a new graph."""
    return {name: model.changes[name].detach().requires_grad_() for name in names}
