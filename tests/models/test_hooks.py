"""Hooks see the input and output of every watched layer that runs, and leave nothing behind."""

import pytest
import torch
from torch import Tensor
from torch.nn import Linear, Sequential

from evopress.models.hooks import watch_layers


def test_every_call_of_a_watched_layer_is_recorded_with_input_and_output():
    first, second = Linear(3, 4), Linear(4, 2)
    model, calls = Sequential(first, second), []
    inputs = torch.ones(5, 3)

    def record(key: str, inputs: Tensor, output: Tensor) -> None:
        calls.append((key, inputs, output))

    with watch_layers({"first": first, "second": second}, record):
        output = model(inputs)
    model(inputs)
    (key_1, inputs_1, output_1), (key_2, inputs_2, output_2) = calls
    assert (key_1, key_2) == ("first", "second")
    assert inputs_1 is inputs and output_1 is inputs_2 and output_2 is output


def test_hooks_are_removed_after_an_error():
    layer = Linear(2, 2)
    with pytest.raises(RuntimeError, match="inside"), watch_layers({0: layer}, lambda key, inputs, output: None):
        raise RuntimeError("inside")
    assert not layer._forward_hooks
