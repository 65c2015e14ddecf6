"""Checkpoints of levels and drops together: dropped parts are not stored, and the others have their levels."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from evopress.compressors.base import Compressor
from evopress.compressors.gguf import GGUF
from evopress.compressors.rtn import RTN
from evopress.export import Export, UnsupportedExportError, check_export, fixed_bytes, load, write_checkpoints
from evopress.space.settings import SpaceSettings
from tests.export.test_nemotron_nas import wide_llama
from tests.exports import TOKENS, compressed, logits
from tests.tiny_models import NUM_BLOCKS, tiny

CODES = RTN(bits=(2, 3, 4), group_size=32, symmetric=True, scale_dtype="float32")
CODES_OF_VLLM = RTN(bits=(4, 8), group_size=32, symmetric=True, scale_dtype="float32")
FORMATS: dict[str, tuple[Export, Compressor, str]] = {
    "hf": (Export(formats=["hf"], dtype="float32"), CODES, "none"),
    "compressed_tensors": (Export(formats=["compressed_tensors"], dtype="float32"), CODES, "none"),
    "vllm": (Export(formats=["compressed_tensors"], dtype="float32", engine="vllm"), CODES_OF_VLLM, "engine"),
    "gguf": (Export(formats=["gguf"], dtype="float32"), GGUF(types=("Q8_0", "Q4_0")), "none"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_dropped_block_is_not_in_the_file_and_the_others_have_their_levels(name, tmp_path):
    settings, compressor, tie = FORMATS[name]
    check_export(settings, compressor, space=SpaceSettings(tie=tie, drops="block", trade="any"))
    searched = compressed(tiny("qwen2"), compressor, tmp_path / "levels", tie=tie, drops="block")
    verified = write_checkpoints(settings, searched, tokens=TOKENS, facts={}, folder=tmp_path)[settings.formats[0]]
    folder = tmp_path / settings.formats[0]
    config = json.loads((folder / "config.json").read_text())
    assert config["num_hidden_layers"] == len(config["layer_types"]) == NUM_BLOCKS - 1
    model = load(folder, torch.float32)
    with searched.applied() as whole:
        torch.testing.assert_close(logits(model), logits(whole), rtol=1e-4, atol=1e-4)
    rest = fixed_bytes(settings, searched.lm, searched.space)
    if name != "hf":  # norms of dropped blocks are counted for a budget but not written
        limit = rest + searched.space.size_bytes(searched.profile) - searched.space.fixed_bytes
        assert 0.9 * limit < verified["written_bytes"] < limit + 2048


def test_blocks_after_a_dropped_one_are_stored_under_their_new_numbers(tmp_path):
    settings, compressor, _ = FORMATS["compressed_tensors"]
    searched = compressed(tiny("qwen2"), compressor, tmp_path / "levels", drops="block")
    write_checkpoints(settings, searched, tokens=TOKENS, facts={}, folder=tmp_path)
    state = load_file(tmp_path / "compressed_tensors" / "model.safetensors")
    packed = searched.packed("model.layers.2.mlp.down_proj")
    assert torch.equal(state["model.layers.1.mlp.down_proj.weight_packed"], packed.packed)
    groups = json.loads((tmp_path / "compressed_tensors" / "config.json").read_text())["quantization_config"]
    targets = [name for group in groups["config_groups"].values() for name in group["targets"]]
    assert sorted(targets) == sorted(f"model.layers.{b}.{n}" for b in (0, 1) for n in searched.lm.layers(b))


def test_dropped_subblocks_are_left_out_or_zeroed_in_dense_weights(tmp_path):
    searched = compressed(wide_llama(), CODES, tmp_path / "levels", drops="subblock")
    settings = Export(formats=["nemotron_nas", "zeroed"], dtype="float32")
    check_export(settings, CODES, space=SpaceSettings(drops="subblock", trade="any"))
    verified = write_checkpoints(settings, searched, tokens=TOKENS, facts={}, folder=tmp_path)
    assert searched.half_dropped == {0: "mlp"}
    anchor = AutoModelForCausalLM.from_pretrained(tmp_path / "zeroed", dtype=torch.float32)
    torch.testing.assert_close(logits(load(tmp_path / "nemotron_nas")), logits(anchor), rtol=1e-5, atol=1e-5)
    assert verified["nemotron_nas"]["written_bytes"] < verified["zeroed"]["written_bytes"]


@pytest.mark.parametrize("name", FORMATS)
def test_formats_that_hold_whole_blocks_only_refuse_halves_at_start_up(name: str, tmp_path: Path):
    settings, compressor, tie = FORMATS[name]
    with pytest.raises(
        UnsupportedExportError, match=r"set space.drops=block, or use export.formats=\[nemotron_nas\] or \[zeroed\]"
    ):
        check_export(settings, compressor, space=SpaceSettings(tie=tie, drops="subblock", trade="any"))
