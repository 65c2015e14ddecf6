"""Dense checkpoints: loaded by transformers, they have the logits of the searched model."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from evopress.compressors.rtn import RTN
from evopress.compressors.sparsegpt import SparseGPT
from evopress.export import Export, UnsupportedExportError, fixed_bytes, load, write_checkpoints
from evopress.export.formats import DenseSafetensors
from evopress.space.profile_files import from_json
from tests.exports import TOKENS, compressed, logits, searched_drops
from tests.tiny_models import FAMILIES, NUM_BLOCKS, tiny

FACTS = {
    "model": "tiny",
    "compress": "drop",
    "budget": {"metric": "drop", "target": 0.3, "achieved": 1 / 3},
    "search": "evolution",
    "seed": 0,
    "searched": {"size_bytes": 1000, "perplexity": {"pydoc": 12.5}, "kl": {"pydoc": 0.25}},
}
FLOAT32 = Export(formats=["hf", "zeroed"], dtype="float32")


def reloaded(folder: Path) -> torch.Tensor:
    return logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))


def written(settings: Export, searched, folder: Path) -> dict:
    return write_checkpoints(settings, searched, tokens=TOKENS, facts=FACTS, folder=folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_dropped_block_is_gone_and_the_logits_stay(family, tmp_path):
    searched = searched_drops(tiny(family), {(1, "attention"), (1, "mlp")})
    verified = written(FLOAT32, searched, tmp_path)
    with searched.applied() as model:
        expected = logits(model)
    torch.testing.assert_close(reloaded(tmp_path / "hf"), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(reloaded(tmp_path / "zeroed"), expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(expected, logits(tiny(family).model), atol=1e-2)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["num_hidden_layers"] == NUM_BLOCKS - 1
    assert verified["hf"]["written_bytes"] < verified["zeroed"]["written_bytes"]


def test_lists_with_an_entry_per_block_lose_those_of_dropped_blocks(tmp_path):
    lm = tiny("gemma3_text")
    written(FLOAT32, searched_drops(lm, {(1, "attention"), (1, "mlp")}), tmp_path)
    config = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").config
    assert config.layer_types == [lm.model.config.layer_types[0], lm.model.config.layer_types[2]]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_dropped_subblock_is_zeroed_in_every_family(family, tmp_path):
    searched = searched_drops(tiny(family), {(0, "mlp"), (2, "attention")})
    written(Export(formats=["zeroed"], dtype="float32"), searched, tmp_path)
    with searched.applied() as model:
        torch.testing.assert_close(reloaded(tmp_path / "zeroed"), logits(model), rtol=1e-5, atol=1e-5)


def test_a_profile_that_some_format_cannot_hold_is_refused_before_anything_is_written(tmp_path):
    searched = searched_drops(tiny("llama"), {(1, "mlp")})
    with pytest.raises(UnsupportedExportError, match="drops only the mlp of block 1: use export"):
        written(Export(formats=["zeroed", "hf"]), searched, tmp_path)
    everything = {(block, part) for block in range(NUM_BLOCKS) for part in ("attention", "mlp")}
    with pytest.raises(UnsupportedExportError, match="drops every block"):
        written(FLOAT32, searched_drops(tiny("llama"), everything), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("compressor", [RTN(bits=(4, 2), group_size=32), SparseGPT(base=0.5, num_levels=2)])
def test_layers_are_written_as_the_database_decodes_them(compressor, tmp_path):
    searched = compressed(tiny("llama"), compressor, tmp_path)
    verified = written(Export(formats=["hf"], dtype="float32"), searched, tmp_path)
    stored = load_file(tmp_path / "hf" / "model.safetensors")
    for layer, (block, level) in searched.levels.items():
        packed = searched.weights.database.read(block, layer, level)
        assert torch.equal(stored[f"{layer}.weight"], packed.dense())
    with searched.applied() as model:
        torch.testing.assert_close(reloaded(tmp_path / "hf"), logits(model), rtol=1e-5, atol=1e-5)
    assert verified["hf"]["written_bytes"] == pytest.approx(verified["hf"]["predicted_bytes"], rel=0.01)


def test_removed_weights_are_exact_zeros_and_the_card_says_that_they_save_nothing(tmp_path):
    searched = compressed(tiny("llama"), SparseGPT(base=0.5, num_levels=2), tmp_path)
    written(Export(formats=["hf"]), searched, tmp_path)
    stored = load_file(tmp_path / "hf" / "model.safetensors")
    for unit, level in zip(searched.space.units, searched.profile, strict=True):
        zeros = int((stored[f"{unit.name}.weight"] == 0).sum())
        assert zeros >= unit.num_weights - unit.levels[level].cost
    assert "stored as zeros, so the file is as large" in (tmp_path / "hf" / "README.md").read_text()


def test_a_float32_model_is_written_in_16_bits_by_default(tmp_path):
    searched = searched_drops(tiny("llama"), {(1, "mlp")})
    verified = written(Export(formats=["zeroed"]), searched, tmp_path)
    stored = load_file(tmp_path / "zeroed" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    assert verified["zeroed"]["max_logit_difference"] < 1e-4  # of the searched model rounded in the same way


def test_tied_embeddings_are_written_once(tmp_path):
    searched = searched_drops(tiny("gemma3_text"), {(1, "mlp")})
    written(Export(formats=["zeroed"]), searched, tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "zeroed" / "model.safetensors")


def test_a_checkpoint_contains_tokenizer_generation_settings_profile_and_card(tmp_path):
    searched = searched_drops(tiny("llama"), {(1, "attention"), (1, "mlp")})
    written(FLOAT32, searched, tmp_path)
    folder = tmp_path / "hf"
    assert AutoTokenizer.from_pretrained(folder)("hello")["input_ids"] == searched.lm.tokenizer("hello")["input_ids"]
    assert (folder / "generation_config.json").is_file()
    assert from_json(searched.space, (folder / "profile.json").read_text()) == searched.profile
    text = (folder / "README.md").read_text()
    for part in (
        "tiny, compressed with evopress",
        f"from_pretrained('{folder}')",
        "| dropped | 2 |",
        "| 12.5 | 0.2500 |",
    ):
        assert part in text
    assert {path.name for path in tmp_path.iterdir()} == {"hf", "zeroed"}


class WrongBlock(DenseSafetensors):
    """Writes the model without another block than the one that the search dropped."""

    def write(self, searched, folder, *, dtype):
        super().write(searched_drops(searched.lm, {(0, "attention"), (0, "mlp")}), folder, dtype=dtype)


def test_a_checkpoint_that_fails_its_verification_leaves_nothing_and_keeps_the_old_one(tmp_path, monkeypatch):
    searched = searched_drops(tiny("llama"), {(1, "attention"), (1, "mlp")})
    settings = Export(formats=["hf"], dtype="float32")
    written(settings, searched, tmp_path)
    before = (tmp_path / "hf" / "model.safetensors").read_bytes()
    monkeypatch.setattr("evopress.export.registry._FORMATS", {"hf": WrongBlock})
    with pytest.raises(ValueError, match=r"self_attn\.q_proj\.weight differs from the searched model"):
        written(settings, searched, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
    assert (tmp_path / "hf" / "model.safetensors").read_bytes() == before


def test_a_checkpoint_is_loaded_in_the_type_that_it_is_stored_in(tmp_path):
    searched = searched_drops(tiny("llama"), {(1, "attention"), (1, "mlp")})
    written(FLOAT32, searched, tmp_path)
    model = load(tmp_path / "hf")
    assert model.dtype == torch.float32
    torch.testing.assert_close(logits(model), reloaded(tmp_path / "hf"))
    with pytest.raises(ValueError, match=r"cannot be loaded as an exported checkpoint: it has no config\.json"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "compressor"),
    [
        ("compressed_tensors", RTN(bits=(4, 2), group_size=32, symmetric=True)),
        ("gguf", RTN(bits=(8, 4), group_size=32, symmetric=True)),
    ],
)
def test_the_file_takes_the_bytes_of_the_levels_and_the_fixed_bytes(name, compressor, tmp_path):
    pytest.importorskip(name, reason=f"needs the package {name}")
    searched = compressed(tiny("llama"), compressor, tmp_path)
    settings = Export(formats=[name])
    space = replace(searched.space, fixed_bytes=fixed_bytes(settings, searched.lm, searched.space))
    verified = written(settings, replace(searched, space=space), tmp_path)
    assert verified[name]["written_bytes"] == pytest.approx(space.size_bytes(searched.profile), rel=0.01)
    assert space.fixed_bytes > searched.space.fixed_bytes


def test_without_packed_levels_the_fixed_bytes_are_those_of_the_space():
    searched = searched_drops(tiny("llama"), {(1, "mlp")})
    assert fixed_bytes(FLOAT32, searched.lm, searched.space) == searched.space.fixed_bytes
