"""Packed checkpoints of compressed-tensors: in transformers they have the logits of the searched model."""

import json
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from evopress.compressors.drop import Drop
from evopress.compressors.float import Float
from evopress.compressors.gptq import GPTQ
from evopress.compressors.rtn import RTN
from evopress.compressors.sparsegpt import SparseGPT
from evopress.export import (
    Export,
    PlannedModel,
    UnsupportedExportError,
    check_export,
    check_export_of_model,
    load,
    write_checkpoints,
)
from evopress.export.state import write_safetensors
from evopress.models.loading import wrap_model
from evopress.space.build import dense_bytes, layer_space
from evopress.space.settings import SpaceSettings
from tests.exports import TOKENS, compressed, logits, searched_drops
from tests.marks import slow_except
from tests.tiny_models import FAMILIES, random_model, tiny, tokenizer

pytest.importorskip("compressed_tensors", reason="needs the package compressed-tensors")

PACKED = Export(formats=["compressed_tensors"])
PACKED_FOR_VLLM = Export(formats=["compressed_tensors"], engine="vllm")
SYMMETRIC = GPTQ(bits=(8, 5, 3, 2), group_size=32, symmetric=True)
ASYMMETRIC = GPTQ(bits=(8, 4), group_size=32)
SYMMETRIC_FOR_VLLM = GPTQ(bits=(8, 4), group_size=32, symmetric=True)


def written(settings: Export, searched, folder) -> dict:
    return write_checkpoints(settings, searched, tokens=TOKENS, facts={}, folder=folder)["compressed_tensors"]


@pytest.mark.parametrize("family", slow_except(FAMILIES, ("llama", "gemma3_text", "opt")))
def test_transformers_decodes_mixed_widths_to_the_weights_of_the_search(family, tmp_path):
    searched = compressed(tiny(family), SYMMETRIC, tmp_path)
    verified = written(PACKED, searched, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "compressed_tensors", dtype=torch.float32)
    found_logits = logits(model)
    for layer in searched.levels:
        assert torch.equal(model.get_submodule(layer).weight, searched.packed(layer).dense())
    with searched.applied() as search_model:
        torch.testing.assert_close(found_logits, logits(search_model), rtol=1e-2, atol=1e-2)  # embeddings in float16
    assert verified["max_logit_difference"] < 1e-4
    assert verified["written_bytes"] == pytest.approx(verified["predicted_bytes"], rel=0.01)


@pytest.mark.parametrize("bits", range(2, 9))
def test_transformers_decodes_every_width(bits, tmp_path):
    searched = compressed(tiny("llama"), RTN(bits=(bits,), group_size=32, symmetric=True), tmp_path)
    written(PACKED, searched, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "compressed_tensors", dtype=torch.float32)
    logits(model)
    for layer in searched.levels:
        assert torch.equal(model.get_submodule(layer).weight, searched.packed(layer).dense())


def test_the_bytes_are_those_of_the_space_and_a_shape_per_layer(tmp_path):
    searched = compressed(tiny("llama"), SYMMETRIC, tmp_path)
    verified = written(PACKED, searched, tmp_path)
    tensors = verified["written_bytes"] - verified["header_bytes"]
    assert tensors == searched.space.size_bytes(searched.profile) + 16 * len(searched.levels)
    assert verified["written_bytes"] < dense_bytes(searched.lm)


def test_every_width_is_a_group_with_the_exact_names_of_its_layers(tmp_path):
    searched = compressed(tiny("llama"), SYMMETRIC, tmp_path)
    written(PACKED, searched, tmp_path)
    config = json.loads((tmp_path / "compressed_tensors" / "config.json").read_text())["quantization_config"]
    widths = {
        layer: group["weights"]["num_bits"] for group in config["config_groups"].values() for layer in group["targets"]
    }
    assert widths == {layer: searched.packed(layer).bits for layer in searched.levels}
    assert config["ignore"] == ["lm_head"]
    assert "sparsity_config" not in config


def test_layers_with_two_group_sizes_are_in_two_groups(tmp_path):
    searched = compressed(tiny("llama"), RTN(bits=(4, 3), group_size=128, symmetric=True), tmp_path)
    written(PACKED, searched, tmp_path)
    config = json.loads((tmp_path / "compressed_tensors" / "config.json").read_text())["quantization_config"]
    sizes = {
        (group["weights"]["num_bits"], group["weights"]["group_size"]) for group in config["config_groups"].values()
    }
    assert sizes == {(3, 64), (4, 64), (3, 128), (4, 128)}


def test_zero_points_are_packed_along_the_rows_and_read_back_by_the_library(tmp_path):
    searched = compressed(tiny("llama"), ASYMMETRIC, tmp_path, tie="engine")
    verified = written(PACKED_FOR_VLLM, searched, tmp_path)
    assert verified["files"] == {"layers_with_equal_codes": len(searched.levels)}
    assert verified["written_bytes"] == pytest.approx(verified["predicted_bytes"], rel=0.01)
    stored = load_file(tmp_path / "compressed_tensors" / "model.safetensors")
    layer = "model.layers.0.mlp.down_proj"
    rows, groups, bits = 64, 4, searched.packed(layer).bits
    assert stored[f"{layer}.weight_zero_point"].shape == (rows * bits // 32, groups)
    model = load(tmp_path / "compressed_tensors", torch.float32)
    for layer in searched.levels:
        assert torch.equal(model.get_submodule(layer).weight, searched.packed(layer).dense())


def test_transformers_still_cannot_read_zero_points(tmp_path):
    """The reason why zero points are refused. When this test fails, transformers reads them and the check can go."""
    searched = compressed(tiny("llama"), ASYMMETRIC, tmp_path, tie="engine")
    written(PACKED_FOR_VLLM, searched, tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "compressed_tensors")


FORMATS = {
    "bf16": None,
    "fp8": ("float-quantized", "float", 8, "channel"),
    "fp8_block": ("float-quantized", "float", 8, "block"),
    "int4": ("pack-quantized", "int", 4, "group"),
    "int8": ("pack-quantized", "int", 8, "group"),  # all 64 columns are one group, which vLLM's kernels know
    "mxfp4": ("mxfp4-pack-quantized", "float", 4, "group"),
    "nvfp4": ("nvfp4-pack-quantized", "float", 4, "tensor_group"),
}
"""Format, type, bits and strategy of every level."""

NOT_FP4 = ("bf16", "fp8", "fp8_block", "int8", "int4")


def tiny_in(dtype: torch.dtype):
    return wrap_model(random_model("llama").to(dtype), tokenizer(), f"tiny-{dtype}")


@pytest.mark.parametrize(
    ("dtype", "levels"),
    [
        (torch.bfloat16, tuple(name for name in FORMATS if name != "int4")),
        (torch.bfloat16, ("bf16", "fp8", "int4")),
        (torch.float32, NOT_FP4),
        (torch.float16, NOT_FP4),
    ],
    ids=str,
)
def test_transformers_decodes_mixed_number_formats_to_the_numbers_of_the_database(dtype, levels, tmp_path):
    compressor = Float(levels=levels, scale_dtype="float16" if dtype == torch.float16 else "bfloat16")
    searched = compressed(tiny_in(dtype), compressor, tmp_path)
    verified = written(PACKED, searched, tmp_path)
    assert verified["files"] == {"layers_with_equal_codes": len(searched.levels)}
    assert verified["max_logit_difference"] <= 0.02 * verified["max_logit"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "compressed_tensors", dtype=dtype)
    with searched.applied() as search_model:
        difference = (logits(model) - logits(search_model)).abs().max()
    assert difference <= 0.02 * verified["max_logit"]
    for layer in searched.levels:
        assert torch.equal(model.get_submodule(layer).weight, searched.packed(layer).dense(dtype))


def test_fp4_is_refused_where_the_model_computes_in_another_type_than_that_of_the_library(tmp_path):
    space = layer_space(tiny("llama"), Float(), SpaceSettings())
    planned = PlannedModel(lm=tiny("llama"), compressor=Float(), space=space, window=32)
    message = "computes in float32, but compressed-tensors decodes NVFP4 in bfloat16: set model.dtype=bfloat16"
    with pytest.raises(UnsupportedExportError, match=message):
        check_export_of_model(PACKED, planned)
    with pytest.raises(UnsupportedExportError, match=message):
        written(PACKED, compressed(tiny("llama"), Float(), tmp_path), tmp_path / "checkpoint")


def test_transformers_still_cannot_compute_with_fp4_in_float32(tmp_path):
    """The reason why it is refused. When this test fails, transformers can, and the check can go."""
    searched = compressed(tiny_in(torch.bfloat16), Float(levels=("nvfp4",)), tmp_path)
    written(PACKED, searched, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "compressed_tensors", dtype=torch.float32)
    with pytest.raises(RuntimeError, match="same dtype"):
        logits(model)


def test_every_number_format_is_a_group_with_the_exact_names_of_its_layers(tmp_path):
    searched = compressed(tiny_in(torch.bfloat16), Float(levels=tuple(FORMATS)), tmp_path)
    written(PACKED, searched, tmp_path)
    config = json.loads((tmp_path / "compressed_tensors" / "config.json").read_text())["quantization_config"]
    labels = {
        layer: unit.levels[level].label
        for unit, level in zip(searched.space.units, searched.profile, strict=True)
        for layer in unit.layers
    }
    groups = {
        layer: (group["format"], *(group["weights"][key] for key in ("type", "num_bits", "strategy")))
        for group in config["config_groups"].values()
        for layer in group["targets"]
    }
    assert config["format"] == "mixed-precision"
    assert groups == {layer: FORMATS[label] for layer, label in labels.items() if label != "bf16"}
    assert set(config["ignore"]) == {"lm_head", *(layer for layer, label in labels.items() if label == "bf16")}


@pytest.mark.parametrize("name", FORMATS)
def test_a_checkpoint_of_one_number_format_has_this_format_and_the_bytes_of_the_space(name, tmp_path):
    searched = compressed(tiny_in(torch.bfloat16), Float(levels=(name,)), tmp_path)
    verified = written(PACKED, searched, tmp_path)
    config = json.loads((tmp_path / "compressed_tensors" / "config.json").read_text())["quantization_config"]
    assert {group["format"] for group in config["config_groups"].values()} <= {config["format"]}
    shapes = 16 * len(searched.levels) if name in ("int4", "int8") else 0
    assert verified["written_bytes"] - verified["header_bytes"] == searched.space.size_bytes(searched.profile) + shapes


def test_vllm_gets_one_format_and_one_nvfp4_divisor_for_layers_that_it_fuses(tmp_path):
    compressor = Float(levels=("fp8", "nvfp4"))
    with pytest.raises(UnsupportedExportError, match="have different widths"):
        written(PACKED_FOR_VLLM, compressed(tiny_in(torch.bfloat16), compressor, tmp_path / "untied"), tmp_path)
    searched = compressed(tiny_in(torch.bfloat16), compressor, tmp_path, tie="engine")
    written(PACKED_FOR_VLLM, searched, tmp_path)
    stored = load_file(tmp_path / "compressed_tensors" / "model.safetensors")
    divisors = {name: float(tensor) for name, tensor in stored.items() if name.endswith("weight_global_scale")}
    fused = {}
    for name, divisor in divisors.items():
        block, _, local = name.partition(".self_attn.") if "self_attn" in name else name.partition(".mlp.")
        kind = "qkv" if local[0] in "qkv" else local[:3]
        fused.setdefault((block, kind if kind in ("qkv", "o_p", "dow") else "gate_up"), set()).add(divisor)
    assert fused and all(len(values) == 1 for values in fused.values())


def test_a_damaged_code_fails_the_verification(tmp_path, monkeypatch):
    searched = compressed(tiny("llama"), SYMMETRIC, tmp_path)

    def damaged(state, folder):
        name = next(name for name in state if name.endswith("weight_packed"))
        write_safetensors({**state, name: state[name] ^ 1}, folder)

    monkeypatch.setattr("evopress.export.formats.compressed_tensors.write_safetensors", damaged)
    with pytest.raises(ValueError, match="does not decode to the numbers of the database"):
        written(PACKED, searched, tmp_path)
    assert not (tmp_path / "compressed_tensors").exists()


@pytest.mark.parametrize(
    ("settings", "compressor", "tie", "message"),
    [
        (PACKED, SparseGPT(), "none", "compress=sparsegpt does not make: use compress=gptq"),
        (PACKED, Drop(), "none", "compress=drop does not make"),
        (PACKED, ASYMMETRIC, "none", "set compress.symmetric=true, or export.engine=vllm"),
        (PACKED_FOR_VLLM, ASYMMETRIC, "none", "set space.tie=engine"),
        (PACKED_FOR_VLLM, SYMMETRIC, "engine", r"compress.bits contains \[2, 3, 5\]: set compress.bits=\[4,8\]"),
    ],
)
def test_settings_whose_profiles_no_engine_could_load_are_refused_at_start_up(settings, compressor, tie, message):
    with pytest.raises(UnsupportedExportError, match=message):
        check_export(settings, compressor, space=SpaceSettings(tie=tie))


@pytest.mark.parametrize(
    ("settings", "compressor"),
    [
        (PACKED, SYMMETRIC),
        (PACKED_FOR_VLLM, SYMMETRIC_FOR_VLLM),
        (PACKED_FOR_VLLM, ASYMMETRIC),
        (PACKED_FOR_VLLM, Float(levels=("bf16", "fp8", "int8", "int4", "nvfp4"))),
    ],
)
def test_fitting_settings_are_accepted_at_start_up(settings, compressor):
    check_export(settings, compressor, space=SpaceSettings(tie="engine"))


def test_a_profile_with_widths_that_vllm_does_not_run_is_refused(tmp_path):
    """Levels of another package may have widths that their compressor does not state."""
    searched = compressed(tiny("llama"), SYMMETRIC, tmp_path, tie="engine")
    with pytest.raises(UnsupportedExportError, match=r"the profile has \[2, 3, 5\]"):
        written(PACKED_FOR_VLLM, searched, tmp_path)


@pytest.mark.parametrize(
    ("scales", "dtype", "is_exact"),
    [
        ("float16", torch.float32, True),
        ("float16", torch.float16, True),
        ("float16", torch.bfloat16, False),
        ("bfloat16", torch.bfloat16, True),
    ],
)
def test_scales_that_engines_would_round_are_refused_before_the_search(scales, dtype, is_exact):
    compressor = replace(SYMMETRIC, scale_dtype=scales)
    lm = wrap_model(random_model("llama").to(dtype), tokenizer(), "tiny")
    space = layer_space(lm, compressor, SpaceSettings())
    planned = PlannedModel(lm=lm, compressor=compressor, space=space, window=32)
    with nullcontext() if is_exact else pytest.raises(UnsupportedExportError, match=r"compress\.scale_dtype=bfloat16"):
        check_export_of_model(PACKED, planned)


def test_a_model_in_bfloat16_is_read_back_in_bfloat16(tmp_path):
    model = random_model("llama").to(torch.bfloat16)
    lm = wrap_model(model, tokenizer(), "tiny-bfloat16")
    verified = written(PACKED, compressed(lm, replace(SYMMETRIC, scale_dtype="bfloat16"), tmp_path), tmp_path)
    assert verified["max_logit_difference"] <= 0.02 * verified["max_logit"]
    assert verified["kl"] < 1e-4
    with pytest.raises(UnsupportedExportError, match="would round the scales, float16, to it"):
        written(PACKED, compressed(lm, SYMMETRIC, tmp_path / "halves"), tmp_path)


def test_a_profile_that_an_engine_cannot_run_is_refused_before_anything_is_written(tmp_path):
    folder = tmp_path / "checkpoint"
    with pytest.raises(UnsupportedExportError, match="are one layer in vLLM but have different widths"):
        written(PACKED_FOR_VLLM, compressed(tiny("llama"), SYMMETRIC_FOR_VLLM, tmp_path / "untied"), folder)
    with pytest.raises(UnsupportedExportError, match="cannot read packed zero points"):
        written(PACKED, compressed(tiny("llama"), ASYMMETRIC, tmp_path / "zeros"), folder)
    with pytest.raises(UnsupportedExportError, match="integer codes"):
        written(PACKED, searched_drops(tiny("llama"), {(1, "mlp")}), folder)
    assert not folder.exists()
