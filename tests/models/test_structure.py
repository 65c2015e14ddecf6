"""A model's layers are all the linear layers of its blocks, grouped by the input they share."""

import pytest
import torch
from torch.nn import Linear

from tests import plain
from tests.models.blockwise import TOKENS
from tests.tiny_models import FAMILIES, tiny


@pytest.mark.parametrize("family", FAMILIES)
def test_the_layers_are_all_linear_layers_of_the_blocks_in_groups_that_read_the_same_input(family):
    lm = tiny(family)
    locals_ = lm.layers(1)
    for index, block in enumerate(lm.blocks):
        names = sorted(name for name, module in block.named_modules() if isinstance(module, Linear))
        assert sorted(lm.layers(index)) == names
    inputs: dict[str, torch.Tensor] = {}
    order: list[str] = []

    def note(local):
        return lambda module, args: (inputs.update({local: args[0].clone()}), order.append(local))[0]

    handles = [lm.linear(1, local).register_forward_pre_hook(note(local)) for local in locals_]
    plain.logits(lm.model, TOKENS[:1])
    for handle in handles:
        handle.remove()
    for group in lm.layer_groups(1):
        assert all(torch.equal(inputs[group[0]], inputs[local]) for local in group)
    assert len({float(inputs[group[0]].sum()) for group in lm.layer_groups(1)}) == len(lm.layer_groups(1))
    firsts = [group[0] for group in lm.layer_groups(1)]
    assert [local for local in order if local in firsts] == firsts


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_is_part_of_either_attention_or_mlp(family):
    lm = tiny(family)
    attention, mlp = lm.subblock_layers(0, "attention"), lm.subblock_layers(0, "mlp")
    assert sorted(attention + mlp) == sorted(lm.layers(0))
    assert all("attn" in local for local in attention) and not any("attn" in local for local in mlp)
