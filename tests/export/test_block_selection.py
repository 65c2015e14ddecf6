"""A configuration of fewer blocks describes exactly the blocks that are kept."""

from itertools import combinations

import pytest
import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from evopress.export.block_selection import config_of_blocks
from evopress.models.families import FAMILIES
from tests.tiny_models import ALL_FAMILIES, NUM_BLOCKS, WITH_VISION, config

SUBSETS = [blocks for size in range(1, NUM_BLOCKS + 1) for blocks in combinations(range(NUM_BLOCKS), size)]


def shapes_of_blocks(settings: PretrainedConfig, family: str) -> list[dict[str, torch.Size]]:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(settings)
    blocks = model.get_submodule(FAMILIES[family.partition("-")[0]].blocks)
    return [{name: tensor.shape for name, tensor in block.state_dict().items()} for block in blocks.children()]


@pytest.mark.parametrize("family", [family for family in ALL_FAMILIES if family not in WITH_VISION])
def test_every_choice_of_blocks_keeps_their_layers(family):
    settings = config(family)
    before = settings.to_dict()
    all_blocks = shapes_of_blocks(settings, family)
    for blocks in SUBSETS:
        selected = config_of_blocks(settings, NUM_BLOCKS, blocks=blocks)
        assert shapes_of_blocks(selected, family) == [all_blocks[block] for block in blocks]
        again = type(selected).from_dict(selected.to_dict())
        assert shapes_of_blocks(again, family) == [all_blocks[block] for block in blocks]
    assert settings.to_dict() == before


def test_a_list_of_blocks_without_experts_may_be_as_long_as_the_model():
    """Such a list has no entry per block."""
    settings = config("qwen3_moe")
    settings.mlp_only_layers = [0, 1, 2]
    assert config_of_blocks(settings, NUM_BLOCKS, blocks=[0, 2]).mlp_only_layers == [0, 1]
