"""What a profile chooses for every block is what its units say."""

import weakref

import pytest
import torch

from evopress.compressors.drop import Drop
from evopress.compressors.rtn import RTN
from evopress.space.apply import applied, runnable
from evopress.space.build import drop_space, layer_space
from evopress.space.choices import BlockChoice, Choices
from evopress.space.settings import SpaceSettings
from tests.tiny_models import NUM_BLOCKS, tiny, token_windows

BITS = RTN(bits=(4, 3, 2), group_size=32)


@pytest.mark.parametrize("tie", ["none", "engine"])
def test_a_block_runs_with_the_levels_of_its_layers(tie):
    lm = tiny("llama")
    space = layer_space(lm, BITS, SpaceSettings(tie=tie))
    profile = tuple(index % 3 for index in range(len(space)))
    level_of = {layer: level for unit, level in zip(space.units, profile, strict=True) for layer in unit.layers}
    choices = Choices(space, lm).of(profile)
    assert len(choices) == NUM_BLOCKS
    for prefix, choice in zip(lm.block_names, choices, strict=True):
        assert not choice.dropped
        assert {f"{prefix}.{local}": level for local, level in choice.levels} == {
            layer: level for layer, level in level_of.items() if layer.startswith(f"{prefix}.")
        }


@pytest.mark.parametrize(
    ("granularity", "profile", "dropped"),
    [
        ("subblock", (1, 0, 0, 1, 1, 1), [{"attention"}, {"mlp"}, {"attention", "mlp"}]),
        ("subblock", (0,) * 6, [set()] * 3),
        ("block", (0, 1, 0), [set(), {"attention", "mlp"}, set()]),
    ],
)
def test_a_block_runs_without_its_dropped_sub_blocks(granularity, profile, dropped):
    lm = tiny("opt")
    choices = Choices(drop_space(lm, Drop(granularity=granularity)), lm).of(profile)
    assert choices == [BlockChoice((), frozenset(parts)) for parts in dropped]


def test_without_a_profile_every_block_is_dense():
    lm = tiny("llama")
    assert Choices(layer_space(lm, BITS, SpaceSettings()), lm).of(None) == [BlockChoice()] * NUM_BLOCKS


class FreshWeights:
    """Weights that are made at every call, and counted while anyone holds them."""

    def __init__(self, lm):
        names = [lm.layer_name(b, local) for b in range(lm.num_blocks) for local in lm.layers(b)]
        self.dense = {name: lm.model.get_submodule(name).weight.detach() for name in names}
        self.references = []
        self.most_at_once = 0

    def get(self, block: int, layer: str, level: int) -> torch.Tensor:
        weight = self.dense[layer] * (1 + 0.1 * level)
        self.references = [reference for reference in self.references if reference() is not None]
        self.references.append(weakref.ref(weight))
        self.most_at_once = max(self.most_at_once, len(self.references))
        return weight


@pytest.mark.parametrize("family", ["llama", "gemma2", "mixtral"])
@pytest.mark.parametrize("drops", ["none", "subblock"])
def test_a_model_that_decodes_as_it_runs_computes_the_same_and_holds_one_block(family, drops):
    lm, tokens = tiny(family), token_windows(2, 12)
    space = layer_space(lm, BITS, SpaceSettings(trade="any", drops=drops))
    weights = FreshWeights(lm)
    profile = space.normalized(tuple(index % len(unit.levels) for index, unit in enumerate(space.units)))
    with applied(lm, space, weights, profile) as model, torch.no_grad():
        expected = model(input_ids=tokens).logits
    weights.most_at_once, weights.references = 0, []
    with runnable(lm, space, weights, profile) as model, torch.no_grad():
        computed = model(input_ids=tokens).logits
        generated = model.generate(input_ids=tokens, max_new_tokens=3, do_sample=False)
    assert torch.equal(computed, expected)
    assert generated.shape == (2, 15)
    assert 0 < weights.most_at_once <= len(lm.layers(0)) + 1
