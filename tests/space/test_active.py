"""What a token uses of a mixture of experts is what runs when a single token goes through the model."""

import pytest
import torch

from evopress.compressors.drop import Drop
from evopress.compressors.rtn import RTN
from evopress.models.active_experts import active_parameters, has_experts
from evopress.space.active import active_bytes
from evopress.space.build import drop_space, layer_space
from evopress.space.settings import SpaceSettings
from tests.tiny_models import FAMILIES, MIXED, WITH_EXPERTS, WITH_SHARED_EXPERTS, tiny

MIXTURES = [*WITH_EXPERTS, *WITH_SHARED_EXPERTS, *MIXED]


def used_by_one_token(family: str) -> dict[str, int]:
    """Number of weights of every layer that runs for one token."""
    lm, used = tiny(family), {}
    names = [lm.layer_name(block, local) for block in range(lm.num_blocks) for local in lm.layers(block)]
    hooks = [
        lm.model.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: (
                used.update({name: module.weight.numel()}) if inputs[0].numel() else None
            )
        )
        for name in names
    ]
    with torch.no_grad():
        lm.model(input_ids=torch.tensor([[5]]))
    for hook in hooks:
        hook.remove()
    return used


@pytest.mark.parametrize("family", MIXTURES)
def test_active_parameters_are_those_that_run_for_a_token(family):
    lm = tiny(family)
    assert has_experts(lm)
    in_layers = sum(
        lm.linear(block, local).weight.numel() for block in range(lm.num_blocks) for local in lm.layers(block)
    )
    outside = sum(parameter.numel() for parameter in lm.model.parameters()) - in_layers
    assert active_parameters(lm) == outside + sum(used_by_one_token(family).values())


@pytest.mark.parametrize("tie", ["none", "expert", "engine"])
@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "deepseek_v2-mixed"])
def test_active_bytes_are_those_of_the_levels_that_run(family, tie):
    lm = tiny(family)
    space = layer_space(lm, RTN(bits=[2, 4], group_size=16), SpaceSettings(tie=tie))
    profile = space.uniform(1)
    of_layer = {layer: unit.levels[1].size_bytes / unit.num_weights for unit in space.units for layer in unit.layers}
    expected = sum(number * of_layer[name] for name, number in used_by_one_token(family).items())
    assert active_bytes(space, lm, profile) - space.fixed_bytes == pytest.approx(expected, abs=0.51)
    assert active_bytes(space, lm, profile) < space.size_bytes(profile)


def test_dropped_experts_are_not_active():
    lm = tiny("mixtral")
    space = drop_space(lm, Drop(granularity="subblock"))
    kept, dropped = space.uniform(0), (0, 1, *[0] * (len(space) - 2))
    assert 0 < active_bytes(space, lm, kept) - active_bytes(space, lm, dropped) < space.units[1].levels[0].size_bytes


@pytest.mark.parametrize("family", FAMILIES)
def test_all_bytes_of_a_dense_model_are_active(family):
    lm = tiny(family)
    space = layer_space(lm, RTN(bits=[2, 4], group_size=32), SpaceSettings())
    assert not has_experts(lm)
    assert active_parameters(lm) == sum(parameter.numel() for parameter in lm.model.parameters())
    assert active_bytes(space, lm, space.uniform(1)) == space.size_bytes(space.uniform(1))
