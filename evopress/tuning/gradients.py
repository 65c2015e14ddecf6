"""The gradients of the KL from the dense model at all parameters, one block at a time.

::

    keep the states between the blocks, from a forward pass without a graph
    send the gradient back through the head and the last norm
    for each block, from the last to the first:
        decode its weights again and run it on its kept state, with a graph
        send the gradient back through it, to its parameters and to its input

Each group of gradients is handed out before the next one is computed, so the graph of one block is in memory at a time,
and its parameters may change at once: no earlier block needs them again.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from evopress.evaluation.compressible_model import CompressibleModel
from evopress.evaluation.switch_gradients import ForwardPass, forward_pass, head_gradients
from evopress.runtime import distributed
from evopress.tuning.tunable_model import TunableModel, final_norm_name


@dataclass(frozen=True)
class Gradients:
    """Gradients of the mean KL by parameter. `kl` is that mean, in the first group only, which is that of the head."""

    of_parameters: dict[str, Tensor]
    kl: float = 0.0


def gradient_groups(model: TunableModel, tokens: Int[Tensor, "windows time"]) -> Iterator[Gradients]:
    """The gradients on some windows: of the last norm, of the last block, …, of the first block. Collective.

    The processes share the windows. The sums are taken in the order of the windows, whoever computed them.
    """
    device, count = model.lm.device, tokens.numel()
    windows = [_Window(model, window.to(device)) for window in distributed.share(tokens.split(1))]
    yield _mean(model, [window.through_head() for window in windows], count)
    for block in reversed(range(model.lm.num_blocks)):
        yield _mean(model, [Gradients(window.through_block(block)) for window in windows], count)


def _mean(model: TunableModel, shared: list[Gradients], num_tokens: int) -> Gradients:
    """The sum over the windows of all processes, divided by the number of tokens."""
    on_cpu = [Gradients({n: g.cpu() for n, g in window.of_parameters.items()}, window.kl) for window in shared]
    windows = [window for of_process in distributed.gather(on_cpu) for window in of_process]
    sums = dict(windows[0].of_parameters)
    for window in windows[1:]:
        sums = {name: total + window.of_parameters[name] for name, total in sums.items()}
    means = {name: (total / num_tokens).to(model.lm.device) for name, total in sums.items()}
    return Gradients(means, sum(window.kl for window in windows) / num_tokens)


class _Window:
    """One window on its way back through the model. Gradients are of the KL summed over its tokens."""

    def __init__(self, model: TunableModel, tokens: Int[Tensor, "1 time"]):
        self.model = model
        self.forward: ForwardPass = forward_pass(model, model.profile, tokens)
        dense = CompressibleModel(model.lm, model.space, model.weights)
        self.dense_state: Tensor = forward_pass(dense, None, tokens).states[-1]
        self.gradient: Float[Tensor, "1 time hidden"] = torch.zeros_like(self.dense_state)
        """At the output of the block that comes next."""

    def through_head(self) -> Gradients:
        """To the output of the last block, and to the last norm."""
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
            generator=torch.Generator(),
        )
        at_normed, kl = [], 0.0
        for chunk in chunks:
            at_normed.append(chunk.input_gradients[0])
            kl += chunk.kl
        gradient = torch.cat(at_normed).view_as(normed)
        self.gradient, *of_leaves = torch.autograd.grad(normed, [state, *leaves.values()], gradient)
        return Gradients(dict(zip(leaves, of_leaves, strict=True)), kl)

    def through_block(self, block: int) -> dict[str, Tensor]:
        """To the input of a block, and to its parameters; those that its output does not depend on get zeros."""
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
        self.gradient, *of_leaves = gradients
        return dict(zip(leaves, of_leaves, strict=True))


def _leaves(model: TunableModel, names: list[str]) -> dict[str, Tensor]:
    """The changes of these parameters as the leaves of a new graph."""
    return {name: model.changes[name].detach().requires_grad_() for name in names}
