"""Checkpoints of other tools: their layers are read as exactly the numbers that their layouts say."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from evopress.compressors.float import Float
from evopress.compressors.gguf import GGUF
from evopress.export import Export, write_checkpoints
from evopress.imports import Source, open_sources
from evopress.models.loading import wrap_model
from tests.exports import TOKENS, compressed
from tests.tiny_models import random_model, tiny, tokenizer, wide_llama

ROWS, COLS, GROUP = 32, 64, 32
LAYER = "model.layers.0.mlp.up_proj"


def opened(path: Path) -> Source:
    (source,) = open_sources([str(path)]).values()
    return source


def saved(folder: Path, state: dict[str, torch.Tensor], **settings) -> Source:
    """A checkpoint with these tensors of the layer."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"quantization_config": settings}))
    save_file({f"{LAYER}.{part}": tensor.contiguous() for part, tensor in state.items()}, folder / "model.safetensors")
    return opened(folder)


def shifted_words(codes: list[int], bits: int) -> list[int]:
    """The codes as one little-endian string of bits, cut into signed words of 32 bits."""
    value = sum(code << bits * index for index, code in enumerate(codes))
    words = [(value >> 32 * index) & 0xFFFFFFFF for index in range(-(-len(codes) * bits // 32))]
    return [word - 2**32 if word >= 2**31 else word for word in words]


def codes_of(bits: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random codes (rows, cols), zero points from 1 on and scales, both (rows, groups)."""
    generator = torch.Generator().manual_seed(bits)
    codes = torch.randint(0, 2**bits, (ROWS, COLS), generator=generator)
    zeros = torch.randint(1, 2**bits, (ROWS, COLS // GROUP), generator=generator)
    scales = torch.rand(ROWS, COLS // GROUP, generator=generator).half()
    return codes, zeros, scales


def decoded(codes: torch.Tensor, zeros: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    steps = codes.unflatten(1, (-1, GROUP)) - zeros.unsqueeze(2)
    return (steps.float() * scales.float().unsqueeze(2)).flatten(1)


def gptq_state(bits: int, *, offset: int, zeros: torch.Tensor | None = None) -> tuple[dict, torch.Tensor]:
    """The tensors of a layer, and its weight. Zero points are stored smaller by `offset`."""
    codes, random_zeros, scales = codes_of(bits)
    zeros = random_zeros if zeros is None else zeros
    columns = [shifted_words(row.tolist(), bits) for row in codes]  # each output is a column of qweight
    stored = [shifted_words((group - offset).tolist(), bits) for group in zeros.t()]
    state = {
        "qweight": torch.tensor(columns, dtype=torch.int32).t(),
        "qzeros": torch.tensor(stored, dtype=torch.int32),
        "scales": scales.t(),
        "g_idx": torch.arange(COLS, dtype=torch.int32) // GROUP,
    }
    return state, decoded(codes, zeros, scales)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("checkpoint_format", "offset"), [("gptq", 1), ("gptq_v2", 0), (None, 1)])
def test_gptq(bits, checkpoint_format, offset, tmp_path):
    state, weight = gptq_state(bits, offset=offset)
    named = {} if checkpoint_format is None else {"checkpoint_format": checkpoint_format}
    source = saved(tmp_path / "gptq", state, quant_method="gptq", bits=bits, sym=False, **named)
    imported = source.read(LAYER, (ROWS, COLS))
    assert torch.equal(imported.dense(), weight)
    assert source.stored(LAYER, (ROWS, COLS)).size_bytes == imported.size_bytes
    assert source.integers == ((bits, False),)


def test_symmetric_gptq_needs_no_zero_points(tmp_path):
    state, weight = gptq_state(4, offset=1, zeros=torch.full((ROWS, COLS // GROUP), 8))
    source = saved(tmp_path / "gptq", state, quant_method="gptq", bits=4, sym=True)
    imported = source.read(LAYER, (ROWS, COLS))
    assert imported.zeros is None and torch.equal(imported.dense(), weight)
    assert source.stored(LAYER, (ROWS, COLS)).size_bytes == imported.size_bytes


@pytest.mark.parametrize("method", ["awq", "auto-round"])
def test_awq(method, tmp_path):
    """Word j holds outputs 8j + (0, 2, 4, 6, 1, 3, 5, 7), from the lowest bits on."""
    codes, zeros, scales = codes_of(4)

    def words(outputs: torch.Tensor) -> torch.Tensor:
        ordered = outputs.unflatten(1, (-1, 8))[..., [0, 2, 4, 6, 1, 3, 5, 7]].flatten(1)
        return torch.tensor([shifted_words(row.tolist(), 4) for row in ordered], dtype=torch.int32)

    state = {"qweight": words(codes.t()), "qzeros": words(zeros.t()), "scales": scales.t()}
    settings = {"packing_format": "auto_round:auto_awq"} if method == "auto-round" else {"version": "gemm"}
    source = saved(tmp_path / "awq", state, quant_method=method, bits=4, group_size=GROUP, **settings)
    imported = source.read(LAYER, (ROWS, COLS))
    assert torch.equal(imported.dense(), decoded(codes, zeros, scales))
    assert source.stored(LAYER, (ROWS, COLS)).size_bytes == imported.size_bytes
    assert source.learns_over_blocks is (method == "auto-round")


def other_order(state: dict) -> None:
    state["g_idx"] = state["g_idx"].flip(0)


def too_few_zeros(state: dict) -> None:
    state["qzeros"] = state["qzeros"][:1]


def scales_of_another_layer(state: dict) -> None:
    state["scales"] = state["scales"][:, :-1]


def infinite_scales(state: dict) -> None:
    state["scales"] = torch.full_like(state["scales"], torch.inf)


def without_scales(state: dict) -> None:
    del state["scales"]


DAMAGE = {
    "order": (other_order, r"g_idx of .* orders columns by groups \(desc_act\), which cannot be imported"),
    "zeros": (too_few_zeros, r"qzeros of .* has the shape \[1, 4\], but 32 × 64 weights of 4 bits have \[2, 4\] words"),
    "scales": (scales_of_another_layer, r"scales of .* has the shape \[2, 31\], which does not fit 32 × 64 weights"),
    "infinite": (infinite_scales, r"scales of .* is not finite"),
    "missing": (without_scales, r"scales of .* is missing"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_layer_of_gptq_that_does_not_fit_is_an_error_with_its_tensor(case, tmp_path):
    damage, message = DAMAGE[case]
    state, _ = gptq_state(4, offset=1)
    damage(state)
    source = saved(tmp_path / "gptq", state, quant_method="gptq", bits=4, sym=False)
    with pytest.raises(ValueError, match=rf"compress\.sources: {LAYER}\.{message}"):
        source.read(LAYER, (ROWS, COLS))


def test_zero_points_of_a_symmetric_checkpoint_are_an_error(tmp_path):
    state, _ = gptq_state(4, offset=1)
    source = saved(tmp_path / "gptq", state, quant_method="gptq", bits=4, sym=True)
    with pytest.raises(ValueError, match="has zero points, although the configuration says that it has none"):
        source.read(LAYER, (ROWS, COLS))


FORMATS = ("bf16", "fp8", "fp8_block", "int4", "int8", "mxfp4", "nvfp4")


def test_every_number_format_of_compressed_tensors(tmp_path):
    pytest.importorskip("compressed_tensors")
    lm = wrap_model(random_model("llama").bfloat16(), tokenizer(), "tiny")
    searched = compressed(lm, Float(levels=FORMATS), tmp_path)
    write_checkpoints(Export(formats=["compressed_tensors"]), searched, tokens=TOKENS, facts={}, folder=tmp_path)
    source = opened(tmp_path / "compressed_tensors")
    seen = set()
    for layer in searched.levels:
        weight = searched.packed(layer)
        seen.add(type(weight).__name__)
        if weight.packed_layer().format == "dense":
            assert not source.compresses(layer) and source.stored(layer, weight.shape) is None
            continue
        stored, imported = source.stored(layer, weight.shape), source.read(layer, weight.shape)
        assert type(imported) is type(weight) is stored.kind
        assert stored.size_bytes == imported.size_bytes == weight.size_bytes
        assert torch.equal(imported.dense(), weight.dense())
        with pytest.raises(ValueError, match=layer):
            source.read(layer, (weight.shape[0], weight.shape[1] + 64))
    assert len(seen) == 6  # INT4 and INT8 are of one kind


@pytest.mark.parametrize("model", ["wide llama", "qwen2"])
def test_every_type_of_gguf_with_the_rows_of_transformers(model, tmp_path):
    pytest.importorskip("gguf")
    lm = wide_llama() if model == "wide llama" else tiny(model)
    searched = compressed(lm, GGUF(), tmp_path)
    write_checkpoints(Export(formats=["gguf"]), searched, tokens=TOKENS, facts={}, folder=tmp_path)
    source = opened(tmp_path / "gguf")
    assert source.compresses("model.embed_tokens")
    for layer in searched.levels:
        weight = searched.packed(layer)
        assert torch.equal(source.read(layer, weight.shape).dense(), weight.dense()), layer
        assert source.stored(layer, weight.shape).size_bytes == weight.size_bytes
        with pytest.raises(ValueError, match=r"has the shape .*, but in the model it has"):
            source.stored(layer, (weight.shape[0], weight.shape[1] + 256))
    for name, parameter in lm.model.named_parameters():
        if parameter.ndim == 1:
            assert torch.equal(source.plain(name), parameter.detach()), name


def test_names_are_as_short_as_they_can_be_and_differ(tmp_path):
    for folder in ("a/gptq", "b/gptq", "c"):
        state, _ = gptq_state(4, offset=1)
        saved(tmp_path / folder, state, quant_method="gptq", bits=4)
    paths = [str(tmp_path / folder) for folder in ("a/gptq", "b/gptq", "c")]
    assert list(open_sources([paths[0], paths[2]])) == ["gptq", "c"]
    assert list(open_sources(paths)) == ["a/gptq", "b/gptq", f"{tmp_path.name}/c"]
