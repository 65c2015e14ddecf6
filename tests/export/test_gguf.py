"""GGUF files: the gguf package and transformers read the searched weights from them."""

import json
from dataclasses import replace

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from evopress.compressors.drop import Drop
from evopress.compressors.gguf import GGUF
from evopress.compressors.rtn import RTN
from evopress.export import Export, UnsupportedExportError, check_export, load, write_checkpoints
from evopress.export.formats.gguf_metadata import rope_factors
from evopress.export.formats.gguf_tokenizer import LLAMA3, QWEN2, fast_tokenizer, pre_tokenizer_name
from evopress.models.language_model import LanguageModel
from evopress.models.loading import wrap_model
from evopress.space.settings import SpaceSettings
from evopress.weights.k_types import K_TYPES
from tests.exports import TOKENS, compressed, logits, searched_drops
from tests.marks import slow_except
from tests.tiny_models import tiny, tokenizer, wide_llama

gguf = pytest.importorskip("gguf", reason="needs the package gguf")

SETTINGS = Export(formats=["gguf"])
FEW = GGUF(types=("Q8_0", "Q5_1", "Q4_0"))
PLAIN_ENDS = GGUF(types=FEW.types, embeddings=False)
EXACT = RTN(bits=(8, 5, 4), group_size=32, symmetric=True)


def written(searched, folder, settings: Export = SETTINGS) -> dict:
    return write_checkpoints(settings, searched, tokens=TOKENS, facts={}, folder=folder)["gguf"]


def fields(folder) -> dict:
    reader = gguf.GGUFReader(folder / "gguf" / "model.gguf")
    return {name: field.contents() for name, field in reader.fields.items()}


@pytest.mark.parametrize("family", slow_except(("llama", "mistral", "qwen2", "qwen3"), ("qwen2",)))
def test_transformers_reads_the_searched_weights_bit_for_bit(family, tmp_path):
    searched = compressed(tiny(family), GGUF(), tmp_path)
    verified = written(searched, tmp_path)
    model = load(tmp_path / "gguf", torch.float32)
    for layer in searched.levels:
        assert torch.equal(model.get_submodule(layer).weight, searched.packed(layer).dense())
    assert verified["max_logit_difference"] < 1e-4
    assert verified["files"]["layers_with_equal_weights"] == len(searched.levels)
    with searched.applied() as search_model:
        torch.testing.assert_close(logits(model), logits(search_model), rtol=1e-2, atol=1e-2)  # embeddings in float16


def test_transformers_reads_k_types_bit_for_bit_in_all_layers_embeddings_included(tmp_path):
    searched = compressed(wide_llama(), GGUF(), tmp_path)
    verified = written(searched, tmp_path)
    model = load(tmp_path / "gguf", torch.float32)
    for layer in searched.levels:
        assert torch.equal(model.get_submodule(layer).weight, searched.packed(layer).dense())
    assert verified["files"]["types"].keys() == {"Q8_0", *K_TYPES, "F32"}
    assert verified["max_logit_difference"] < 1e-4
    with searched.applied() as search_model:
        torch.testing.assert_close(logits(model), logits(search_model), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_file_alone_is_enough_for_transformers(tmp_path):
    """Names, head counts, rope and the order of q and k rows come from the metadata, as in llama.cpp."""
    searched = compressed(tiny("llama"), FEW, tmp_path)
    written(searched, tmp_path)
    alone = tmp_path / "alone"
    alone.mkdir()
    (tmp_path / "gguf" / "model.gguf").rename(alone / "model.gguf")
    model = AutoModelForCausalLM.from_pretrained(alone, gguf_file="model.gguf", dtype=torch.float32)
    with searched.applied() as search_model:
        torch.testing.assert_close(logits(model), logits(search_model), rtol=1e-2, atol=1e-2)


@pytest.mark.slow
def test_symmetric_codes_in_groups_of_32_become_block_types_without_rounding(tmp_path):
    searched = compressed(tiny("llama"), EXACT, tmp_path)
    verified = written(searched, tmp_path)
    model = load(tmp_path / "gguf", torch.float32)
    for layer in searched.levels:
        assert torch.equal(model.get_submodule(layer).weight, searched.packed(layer).dense())
    assert {"Q8_0", "Q5_0", "Q4_0"} <= verified["files"]["types"].keys()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_tensors_take_the_predicted_bytes(family, tmp_path):
    searched = compressed(tiny(family), FEW, tmp_path)
    verified = written(searched, tmp_path)
    assert verified["written_bytes"] == pytest.approx(verified["predicted_bytes"], rel=0.01)
    norms = sum(parameter.numel() for parameter in searched.lm.model.parameters() if parameter.ndim == 1)
    tensors = verified["written_bytes"] - verified["header_bytes"]
    assert tensors == searched.space.size_bytes(searched.profile) + 2 * norms


def test_metadata_describes_model_and_tokenizer(tmp_path):
    searched = compressed(tiny("llama"), FEW, tmp_path)
    written(searched, tmp_path)
    metadata = fields(tmp_path)
    assert metadata["general.architecture"] == "llama"
    assert metadata["llama.block_count"] == 3
    assert metadata["llama.attention.head_count_kv"] == 2
    assert metadata["llama.rope.dimension_count"] == 16
    assert metadata["tokenizer.ggml.model"] == "gpt2"
    assert metadata["tokenizer.ggml.pre"] == "gpt-2"
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    assert len(tokens) == len(types) == 300
    assert tokens[searched.lm.tokenizer("a")["input_ids"][0]] == "a"
    assert (tokens[257], types[257]) == ("</s>", gguf.TokenType.CONTROL)
    assert (tokens[299], types[299]) == ("[PAD299]", gguf.TokenType.UNUSED)
    assert metadata["tokenizer.ggml.eos_token_id"] == searched.lm.tokenizer.eos_token_id
    assert metadata["tokenizer.ggml.add_bos_token"] is False


def tied_llama() -> LanguageModel:
    """Embeddings and head share one weight; its rope is scaled."""
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=300,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    )
    torch.manual_seed(0)
    return wrap_model(AutoModelForCausalLM.from_config(config, dtype=torch.float32), tokenizer(), "tied")


def test_a_tied_head_is_not_stored(tmp_path):
    lm = tied_llama()
    searched = compressed(lm, FEW, tmp_path)
    verified = written(searched, tmp_path)
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "gguf" / "model.gguf").tensors}
    assert "output.weight" not in stored
    assert "rope_freqs.weight" in stored
    vectors = 4 * sum(p.numel() for p in lm.model.parameters() if p.ndim == 1) + 4 * len(rope_factors(lm.model.config))
    levels = searched.space.size_bytes(searched.profile) - searched.space.fixed_bytes
    assert verified["written_bytes"] - verified["header_bytes"] == levels + vectors
    searched = replace(searched, profile=(2, *searched.profile[1:]))  # the coarsest embeddings, and so the head
    written(searched, tmp_path)
    (tensor,) = [t for t in gguf.GGUFReader(tmp_path / "gguf" / "model.gguf").tensors if t.name == "token_embd.weight"]
    assert tensor.tensor_type.name == "Q4_0"
    model = load(tmp_path / "gguf", torch.float32)
    assert torch.equal(model.lm_head.weight, searched.packed("model.embed_tokens").dense())
    with searched.applied() as search_model:
        torch.testing.assert_close(logits(model), logits(search_model))


@pytest.mark.slow
def test_a_tied_head_is_compared_as_it_is_stored(tmp_path):
    """The file holds the codes of the shared weight, so the head that they decode to is not rounded to float16."""
    searched = compressed(tied_llama(), FEW, tmp_path)
    for level in range(len(FEW.types)):
        verified = written(replace(searched, profile=(level, *searched.profile[1:])), tmp_path)
        assert verified["max_logit_difference"] < 1e-6 * verified["max_logit"]


def test_untied_embeddings_and_head_have_the_types_that_the_search_chose(tmp_path):
    searched = compressed(tiny("llama"), FEW, tmp_path)
    searched = replace(searched, profile=(1, *searched.profile[1:-1], 2))
    written(searched, tmp_path)
    stored = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "gguf" / "model.gguf").tensors}
    assert (stored["token_embd.weight"], stored["output.weight"]) == ("Q5_1", "Q4_0")
    model = load(tmp_path / "gguf", torch.float32)
    with searched.applied() as search_model:
        torch.testing.assert_close(logits(model), logits(search_model))


def test_embeddings_that_are_units_are_not_rounded_again():
    with pytest.raises(UnsupportedExportError, match=r"set export\.embeddings=null or compress\.embeddings=false"):
        check_export(Export(formats=["gguf"], embeddings="Q8_0"), FEW, space=SpaceSettings())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Q8_0", "Q5_1"])
def test_embeddings_may_be_rounded_as_llama_cpp_does_it(name, tmp_path):
    searched = compressed(tiny("llama"), PLAIN_ENDS, tmp_path)
    plain = written(searched, tmp_path)
    verified = written(searched, tmp_path, Export(formats=["gguf"], embeddings=name))
    reader = gguf.GGUFReader(tmp_path / "gguf" / "model.gguf")
    stored = {tensor.name: tensor for tensor in reader.tensors}
    embeddings = searched.lm.model.get_input_embeddings().weight.detach()
    kind = gguf.GGMLQuantizationType[name]
    reference = torch.from_numpy(gguf.dequantize(gguf.quantize(embeddings.numpy(), kind), kind))
    ours = torch.from_numpy(gguf.dequantize(stored["token_embd.weight"].data, kind))
    assert stored["token_embd.weight"].tensor_type == stored["output.weight"].tensor_type == kind
    assert float((ours - embeddings).square().sum()) < 1.01 * float((reference - embeddings).square().sum())
    assert verified["max_logit_difference"] < 1e-4  # of the searched model with embeddings rounded in the same way
    assert verified["written_bytes"] == pytest.approx(verified["predicted_bytes"], rel=0.01)
    assert verified["written_bytes"] < plain["written_bytes"]


def test_rope_factors_are_the_quotients_of_transformers_frequencies():
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    config = LlamaConfig(rope_parameters={"rope_type": "llama3", "rope_theta": 500000.0, **scaling})
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 1 / 500000.0 ** (torch.arange(0, 128, 2).double() / 128)
    torch.testing.assert_close(rope_factors(config).double(), plain / scaled.double(), rtol=1e-5, atol=0)


def bpe(pre) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE({"a": 0}, []))
    backend.pre_tokenizer = pre
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        (pre_tokenizers.ByteLevel(add_prefix_space=False), "gpt-2"),
        (
            pre_tokenizers.Sequence(
                [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
            ),
            "smollm",
        ),
        *(
            (
                pre_tokenizers.Sequence(
                    [
                        pre_tokenizers.Split(Regex(pattern), "isolated"),
                        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
                    ]
                ),
                name,
            )
            for pattern, name in [(LLAMA3, "llama-bpe"), (QWEN2, "qwen2")]
        ),
    ],
)
def test_the_splitting_rule_is_recognised(pre, expected):
    assert pre_tokenizer_name(fast_tokenizer(bpe(pre))) == expected


def test_an_unknown_splitting_rule_is_refused_unless_named(tmp_path):
    lm = tiny("llama")
    other = wrap_model(lm.model, bpe(pre_tokenizers.Whitespace()), "other")
    searched = compressed(other, FEW, tmp_path / "levels")
    with pytest.raises(UnsupportedExportError, match=r"set export.pre_tokenizer to llama.cpp's name"):
        written(searched, tmp_path / "checkpoint")
    assert not (tmp_path / "checkpoint").exists()
    written(searched, tmp_path / "checkpoint", Export(formats=["gguf"], pre_tokenizer="mpt"))
    assert fields(tmp_path / "checkpoint")["tokenizer.ggml.pre"] == "mpt"


@pytest.mark.parametrize(
    ("compressor", "message"),
    [
        (Drop(), "compress=drop does not make: use compress=gguf"),
        (RTN(bits=(4, 3), group_size=32, symmetric=True), "only of 4, 5 and 8 bits, symmetric, in groups of 32"),
        (RTN(bits=(8, 4), group_size=32), "only of 4, 5 and 8 bits, symmetric"),
        (RTN(bits=(8, 4), group_size=64, symmetric=True), "compress.group_size=32"),
    ],
)
def test_levels_that_no_block_type_holds_are_refused_at_start_up(compressor, message):
    with pytest.raises(UnsupportedExportError, match=message):
        check_export(SETTINGS, compressor, space=SpaceSettings())


@pytest.mark.parametrize("compressor", [GGUF(), EXACT])
def test_block_types_are_accepted_at_start_up(compressor):
    check_export(SETTINGS, compressor, space=SpaceSettings())


def test_a_model_or_profile_that_does_not_fit_is_refused_before_anything_is_written(tmp_path):
    folder = tmp_path / "checkpoint"
    with pytest.raises(UnsupportedExportError, match="this model is gemma2"):
        written(compressed(tiny("gemma2"), FEW, tmp_path / "gemma"), folder)
    with pytest.raises(UnsupportedExportError, match="this profile has none"):
        written(searched_drops(tiny("llama"), {(1, "mlp")}), folder)
    with pytest.raises(UnsupportedExportError, match="no block type has the grid"):
        written(compressed(tiny("llama"), RTN(bits=(3,), group_size=32), tmp_path / "three"), folder)
    assert not folder.exists()


def test_a_model_card_names_the_command(tmp_path):
    written(compressed(tiny("llama"), FEW, tmp_path), tmp_path)
    text = (tmp_path / "gguf" / "README.md").read_text()
    assert f"llama-cli -m {tmp_path / 'gguf'}/model.gguf" in text
    assert json.loads((tmp_path / "gguf" / "profile.json").read_text())["units"]
