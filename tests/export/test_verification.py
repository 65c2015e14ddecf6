"""What verification refuses, and that it accepts rounding."""

import copy
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from evopress.compressors.gguf import GGUF
from evopress.compressors.rtn import RTN
from evopress.export.base import Format
from evopress.export.formats import CompressedTensors, DenseSafetensors, GGUFFile, ZeroedSafetensors
from evopress.export.searched import SearchedModel
from evopress.export.verification.logits import compare_logits
from evopress.export.verification.tolerance import logit_tolerance
from evopress.export.verification.verify import Verification, verify_checkpoint
from evopress.models.loading import wrap_model
from tests.exports import TOKENS, compressed
from tests.tiny_models import FAMILIES, WITH_EXPERTS, random_model, tiny, tokenizer

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def damaged(checkpoint_format: Format, damage, monkeypatch) -> Format:
    """The format, with damage done to every checkpoint that it reads."""
    load = checkpoint_format.load

    def load_and_damage(*arguments: object, **options: object) -> PreTrainedModel:
        model = load(*arguments, **options)
        with torch.no_grad():
            damage(model)
        return model

    monkeypatch.setattr(checkpoint_format, "load", load_and_damage)
    return checkpoint_format


def one_code_off(model: PreTrainedModel) -> None:
    """Three weights of one layer, by a step of a grid of 8 bits."""
    weight = model.model.layers[1].self_attn.v_proj.weight
    weight[3, :3] += weight.abs().max() / 127


def two_rows_swapped(model: PreTrainedModel) -> None:
    weight = model.model.layers[0].mlp.up_proj.weight
    weight[[4, 5]] = weight[[5, 4]]


def norm_in_8_bits(model: PreTrainedModel) -> None:
    weight = model.model.layers[2].input_layernorm.weight
    weight.copy_(weight.to(torch.float8_e4m3fn))


def norm_in_16_bits(model: PreTrainedModel) -> None:
    weight = model.model.layers[2].input_layernorm.weight
    weight.copy_(weight.half())


def rotation_changed(model: PreTrainedModel) -> None:
    """No tensor of the file is wrong."""
    model.model.rotary_emb.inv_freq *= 1.01


def written(checkpoint_format: Format, searched: SearchedModel, folder: Path) -> Path:
    folder.mkdir()
    checkpoint_format.write(searched, folder, dtype=checkpoint_format.default_dtype(searched))
    return folder


def verify(checkpoint_format: Format, searched: SearchedModel, folder: Path) -> Verification:
    dtype = checkpoint_format.default_dtype(searched)
    return verify_checkpoint(checkpoint_format, searched, folder=folder, dtype=dtype, tokens=TOKENS)


@pytest.mark.parametrize(
    ("checkpoint_format", "compressor"),
    [
        (GGUFFile(), GGUF(types=("Q8_0", "Q5_1", "Q4_0"))),
        (DenseSafetensors(), RTN(bits=(8, 4), group_size=32)),
        (ZeroedSafetensors(), RTN(bits=(8, 4), group_size=32)),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("damage", [one_code_off, two_rows_swapped, norm_in_8_bits])
def test_a_small_fault_in_the_tensors_is_refused(checkpoint_format, compressor, damage, tmp_path, monkeypatch):
    if isinstance(checkpoint_format, GGUFFile):
        pytest.importorskip("gguf", reason="needs the package gguf")
    searched = compressed(tiny("llama"), compressor, tmp_path)
    folder = written(checkpoint_format, searched, tmp_path / "checkpoint")
    verify(checkpoint_format, searched, folder)
    with pytest.raises(ValueError, match=r"(v_proj|up_proj|input_layernorm)\.weight differs from the .*: \d+ of its"):
        verify(damaged(checkpoint_format, damage, monkeypatch), searched, folder)


def test_a_norm_in_16_bits_is_refused_where_the_file_holds_it_in_32(tmp_path, monkeypatch):
    pytest.importorskip("gguf", reason="needs the package gguf")
    searched = compressed(tiny("llama"), GGUF(types=("Q8_0", "Q4_0")), tmp_path)
    checkpoint_format = GGUFFile()
    folder = written(checkpoint_format, searched, tmp_path / "checkpoint")
    with pytest.raises(ValueError, match=r"input_layernorm\.weight differs from the searched model"):
        verify(damaged(checkpoint_format, norm_in_16_bits, monkeypatch), searched, folder)


def test_a_small_fault_in_packed_codes_is_refused(tmp_path):
    pytest.importorskip("compressed_tensors", reason="needs the package compressed-tensors")
    from safetensors.torch import load_file, save_file

    checkpoint_format, levels = CompressedTensors(), RTN(bits=(8, 4), group_size=32, symmetric=True)
    searched = compressed(tiny("llama"), levels, tmp_path)
    folder = written(checkpoint_format, searched, tmp_path / "checkpoint")
    verify(checkpoint_format, searched, folder)
    state = load_file(folder / "model.safetensors")
    state["model.layers.1.self_attn.v_proj.weight_packed"][3, 0] ^= 1
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"v_proj does not decode to the numbers"):
        verify(checkpoint_format, searched, folder)


def test_logits_of_the_right_tensors_in_another_architecture_are_refused(tmp_path, monkeypatch):
    searched = compressed(tiny("llama"), RTN(bits=(8, 4), group_size=32), tmp_path)
    checkpoint_format = DenseSafetensors()
    folder = written(checkpoint_format, searched, tmp_path / "checkpoint")
    with pytest.raises(ValueError, match=r"logits differ from the searched model's by up to .* \(allowed"):
        verify(damaged(checkpoint_format, rotation_changed, monkeypatch), searched, folder)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", [*FAMILIES, *WITH_EXPERTS])
def test_rounding_is_accepted(family, dtype):
    """The error of one run against float64 is about as large as the difference of two runs in `dtype`."""
    lm = wrap_model(random_model(family).to(dtype), tokenizer(), family)
    with torch.no_grad():
        rounded = lm.model(input_ids=TOKENS, use_cache=False).logits
        exact = copy.deepcopy(lm.model).double()(input_ids=TOKENS, use_cache=False).logits
    comparison = compare_logits(exact, rounded)
    allowed = logit_tolerance(lm, comparison.scale)
    assert 0 < comparison.max_difference < allowed.difference
    assert 0 < comparison.kl < allowed.kl


def test_comparing_logits_in_chunks_gives_the_same_result(monkeypatch):
    monkeypatch.setattr("evopress.export.verification.logits.CHUNK_ELEMENTS", 1000)
    generator = torch.Generator().manual_seed(0)
    p = torch.randn(2, 33, 300, generator=generator)
    q = p + 0.1 * torch.randn(p.shape, generator=generator)
    comparison = compare_logits(p, q)
    log_p, log_q = p.double().log_softmax(-1), q.double().log_softmax(-1)
    assert comparison.kl == pytest.approx(float((log_p.exp() * (log_p - log_q)).sum(-1).mean()), rel=1e-12)
    assert comparison.max_difference == float((q.double() - p.double()).abs().max())
    assert comparison.scale.largest == float(p.abs().max())
    assert comparison.scale.spread == pytest.approx(float(p.double().var(-1, correction=0).mean().sqrt()), rel=1e-12)
    assert comparison.same_top_token == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).float().mean()))


def test_logits_that_are_not_numbers_are_refused():
    p = torch.zeros(3, 8)
    q = p.clone()
    q[1, 2] = float("nan")
    assert not compare_logits(p, q).max_difference <= 1e9
