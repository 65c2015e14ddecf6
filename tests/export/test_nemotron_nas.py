"""Llama models without some sub-blocks: what is stored, and that it computes the same as the zeroed model."""

import json
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from evopress.compressors.drop import Drop
from evopress.compressors.gptq import GPTQ
from evopress.export import Export, UnsupportedExportError, check_export, load, write_checkpoints
from evopress.export.formats.nemotron_config import ffn_mult
from evopress.models.language_model import LanguageModel
from evopress.models.loading import wrap_model
from evopress.space.settings import SpaceSettings
from tests.exports import TOKENS, logits, searched_drops
from tests.tiny_models import tiny, tokenizer

SETTINGS = Export(formats=["nemotron_nas", "zeroed"], dtype="float32")
HALVES = {(0, "mlp"), (2, "attention"), (1, "attention"), (1, "mlp"), (3, "mlp")}


@cache
def wide_llama() -> LanguageModel:
    """Four blocks, with MLPs of the width 256 that the layout needs."""
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=300,
        max_position_embeddings=256,
        bos_token_id=256,
        eos_token_id=257,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return wrap_model(model, tokenizer(), "wide-llama")


def written(searched, folder: Path, settings: Export = SETTINGS) -> dict:
    return write_checkpoints(settings, searched, tokens=TOKENS, facts={}, folder=folder)


def test_dropped_subblocks_are_not_stored_and_the_logits_are_those_of_the_zeroed_model(tmp_path):
    searched = searched_drops(wide_llama(), HALVES)
    verified = written(searched, tmp_path)
    model = load(tmp_path / "nemotron_nas")
    anchor = AutoModelForCausalLM.from_pretrained(tmp_path / "zeroed", dtype=torch.float32)
    torch.testing.assert_close(logits(model), logits(anchor), rtol=1e-5, atol=1e-5)
    assert verified["nemotron_nas"]["written_bytes"] < verified["zeroed"]["written_bytes"]
    nas = verified["nemotron_nas"]
    assert nas["written_bytes"] == pytest.approx(nas["predicted_bytes"], rel=0.01)


def test_generation_with_a_cache_is_that_of_the_zeroed_model(tmp_path):
    written(searched_drops(wide_llama(), HALVES), tmp_path)
    anchor = AutoModelForCausalLM.from_pretrained(tmp_path / "zeroed", dtype=torch.float32)
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 258}
    tokens = [model.generate(TOKENS[:1], **options) for model in (load(tmp_path / "nemotron_nas"), anchor)]
    assert torch.equal(*tokens)


def test_block_configs_and_tensors_agree(tmp_path):
    written(searched_drops(wide_llama(), HALVES), tmp_path)
    folder = tmp_path / "nemotron_nas"
    config = json.loads((folder / "config.json").read_text())
    absent = [(block["attention"]["no_op"], block["ffn"]["no_op"]) for block in config["block_configs"]]
    assert absent == [(False, True), (True, False), (False, True)]  # block 1 is gone, 2 and 3 moved up
    assert config["num_hidden_layers"] == 3
    stored = {name for name in load_file(folder / "model.safetensors") if ".layers." in name}
    for index, (no_attention, no_mlp) in enumerate(absent):
        parts = {name.removeprefix(f"model.layers.{index}.").split(".")[0] for name in stored if f".{index}." in name}
        attention = set() if no_attention else {"self_attn", "input_layernorm"}
        mlp = set() if no_mlp else {"mlp", "post_attention_layernorm"}
        assert parts == attention | mlp


def test_engines_read_block_configs_by_attribute(tmp_path, monkeypatch):
    written(searched_drops(wide_llama(), HALVES), tmp_path)
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    config = AutoConfig.from_pretrained(tmp_path / "nemotron_nas", trust_remote_code=True)
    assert config.model_type == "nemotron-nas"
    assert config.architectures == ["DeciLMForCausalLM"]
    assert [block.ffn.no_op for block in config.block_configs] == [True, False, True]
    assert config.rope_parameters == wide_llama().model.config.rope_parameters


@pytest.mark.parametrize(("width", "hidden"), [(1536, 576), (14336, 4096), (256, 64), (11008, 4096), (8960, 1536)])
def test_engines_compute_the_width_from_the_factor(width, hidden):
    computed = int(2 * ffn_mult(width, hidden) * hidden / 3)
    assert -(-computed // 256) * 256 == width


@pytest.mark.parametrize(
    ("family", "dropped", "message"),
    [
        ("gemma2", {(1, "mlp")}, "holds Llama models, but this is gemma2 with a sliding window"),
        ("llama", {(1, "mlp")}, "a multiple of 256, but this one is 128 wide"),
        ("wide", {(0, "attention")}, r"block 0 is the first that is kept .* space.tie=engine"),
        ("wide", {(0, "attention"), (0, "mlp"), (1, "attention")}, "block 1 is the first"),
    ],
)
def test_what_the_layout_cannot_hold_is_refused_before_anything_is_written(family, dropped, message, tmp_path):
    lm = wide_llama() if family == "wide" else tiny(family)
    with pytest.raises(UnsupportedExportError, match=message):
        written(searched_drops(lm, dropped), tmp_path)
    assert not list(tmp_path.iterdir())


def test_layer_levels_are_refused_at_start_up():
    check_export(SETTINGS, Drop(), space=SpaceSettings())
    with pytest.raises(UnsupportedExportError, match="use compress=drop"):
        check_export(SETTINGS, GPTQ(), space=SpaceSettings())
