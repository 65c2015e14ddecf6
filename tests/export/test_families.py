"""Exports of every family: shared experts, scaled logits and a vision tower come back as they were searched."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from evopress.compressors.rtn import RTN
from evopress.export import Export, write_checkpoints
from tests import plain
from tests.exports import TOKENS, compressed
from tests.marks import slow_except
from tests.tiny_models import MIXED, NUM_BLOCKS, PACKED_IN_FILES, SCALED, WITH_SHARED_EXPERTS, WITH_VISION, tiny

SETTINGS = Export(formats=["hf"], dtype="float32")


CASES = (*WITH_SHARED_EXPERTS, *SCALED, *WITH_VISION, *MIXED, "gpt_oss")
ALWAYS = ("qwen2_moe", "cohere", "qwen3_moe-mixed", "deepseek_v3-mixed", "qwen3_next", *PACKED_IN_FILES)


@pytest.mark.parametrize("family", slow_except(CASES, ALWAYS))
def test_a_model_with_levels_and_a_dropped_block_is_read_back_by_transformers(family, tmp_path):
    lm = tiny(family)
    searched = compressed(lm, RTN(bits=(2, 4), group_size=16), tmp_path / "levels", drops="block")
    assert len(searched.kept_blocks) == NUM_BLOCKS - 1
    write_checkpoints(SETTINGS, searched, tokens=TOKENS, facts={}, folder=tmp_path)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    with searched.applied() as model:
        expected = plain.logits(model, TOKENS)
    torch.testing.assert_close(plain.logits(exported, TOKENS), expected, rtol=1e-5, atol=1e-5)
    assert exported.config.get_text_config().num_hidden_layers == NUM_BLOCKS - 1


def test_the_vision_tower_is_exported_unchanged(tmp_path):
    lm = tiny("gemma3")
    searched = compressed(lm, RTN(bits=(2, 4), group_size=16), tmp_path / "levels", drops="block")
    write_checkpoints(SETTINGS, searched, tokens=TOKENS, facts={}, folder=tmp_path)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    vision = {
        name: tensor for name, tensor in lm.model.named_parameters() if ".layers." not in name or "vision" in name
    }
    assert any("vision_tower" in name for name in vision)
    for name, tensor in vision.items():
        assert torch.equal(exported.get_parameter(name), tensor)
    text = json.loads((tmp_path / "hf" / "config.json").read_text())["text_config"]
    layer_types = lm.text_config.layer_types
    assert text["layer_types"] == [layer_types[block] for block in searched.kept_blocks]
