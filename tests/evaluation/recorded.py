"""Inputs and outputs of the modules of a whole model, recorded with hooks."""

import torch
from torch import Tensor

from tests import plain


def inputs_and_outputs(model: torch.nn.Module, path: str, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The inputs and outputs of a module, one window at a time, float64 (windows, time, …)."""
    calls: list[tuple[Tensor, Tensor]] = []

    def record(module, args, output):
        calls.append((args[0].double(), (output[0] if isinstance(output, tuple) else output).double()))

    handle = model.get_submodule(path).register_forward_hook(record)
    plain.logits(model, tokens)
    handle.remove()
    inputs, outputs = zip(*calls, strict=True)
    return torch.cat(inputs), torch.cat(outputs)
