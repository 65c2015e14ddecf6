"""Tokenizers of SentencePiece with byte fallback in GGUF files: llama.cpp's algorithm finds the same tokens."""

from dataclasses import replace

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from evopress.export import UnsupportedExportError
from evopress.export.formats.gguf_tokenizer import add_tokenizer, check_tokenizer, tokenizer_bytes
from evopress.models.language_model import LanguageModel
from tests.sentencepiece_tokenizers import BYTES, PAIRS, SPACE, TEXTS, VOCABULARY, sentencepiece, tokens_in_llama_cpp
from tests.tiny_models import tiny

gguf = pytest.importorskip("gguf", reason="needs the package gguf")


def metadata_of(tokenizer: PreTrainedTokenizerFast, folder) -> dict:
    writer = gguf.GGUFWriter(folder / "tokenizer.gguf", "llama")
    add_tokenizer(writer, model_with(tokenizer), None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return {name: field.contents() for name, field in gguf.GGUFReader(folder / "tokenizer.gguf").fields.items()}


def model_with(tokenizer: PreTrainedTokenizerFast) -> LanguageModel:
    return replace(tiny("llama"), tokenizer=tokenizer)


def stages(*steps: normalizers.Normalizer) -> dict:
    return {"normalizer": normalizers.Sequence(list(steps))}


WITHOUT_PREFIX = {"normalizer": normalizers.Replace(" ", SPACE)}
PREPARED = {
    "llama": {},
    "gemma": WITHOUT_PREFIX | {"pre_tokenizer": pre_tokenizers.Split(" ", "merged_with_previous")},
    "metaspace": {"pre_tokenizer": pre_tokenizers.Metaspace(prepend_scheme="always", split=False)},
    "metaspace without a prefix": {"pre_tokenizer": pre_tokenizers.Metaspace(prepend_scheme="never", split=False)},
}


@pytest.mark.parametrize("prepared", PREPARED)
def test_llama_cpp_finds_the_tokens_of_transformers(prepared, tmp_path):
    tokenizer = sentencepiece(**PREPARED[prepared])
    metadata = metadata_of(tokenizer, tmp_path)
    assert metadata["tokenizer.ggml.model"] == "llama"
    for text in TEXTS:
        if prepared != "metaspace" or not text.startswith(" "):  # Metaspace puts no second space before a space
            assert tokens_in_llama_cpp(text, metadata) == tokenizer(text)["input_ids"], text


def test_types_tell_bytes_and_special_tokens_from_others(tmp_path):
    metadata = metadata_of(sentencepiece(), tmp_path)
    kind_of = dict(zip(metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"], strict=True))
    kinds = gguf.TokenType
    assert kind_of["<unk>"] == kinds.UNKNOWN and kind_of["</s>"] == kinds.CONTROL and kind_of["▁the"] == kinds.NORMAL
    assert {kind_of[byte] for byte in BYTES} == {kinds.BYTE}
    assert len(kind_of) == len(VOCABULARY)


def test_the_size_of_the_tokenizer_is_predicted(tmp_path):
    metadata_of(sentencepiece(), tmp_path)
    written = (tmp_path / "tokenizer.gguf").stat().st_size
    assert tokenizer_bytes(model_with(sentencepiece())) == pytest.approx(written, abs=1000)


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (sentencepiece(**stages(normalizers.NFKC(), normalizers.Replace(" ", SPACE))), "does not know how .* Sequence"),
        (sentencepiece(pre_tokenizer=pre_tokenizers.Metaspace()), "pre-tokenizer Metaspace"),
        (sentencepiece(PAIRS[:-1]), "would find other tokens"),
        (sentencepiece([*PAIRS[1:], PAIRS[0]], **WITHOUT_PREFIX), None),
        (sentencepiece([*(pair for pair in PAIRS if pair != ("th", "e")), ("th", "e")]), "would find other tokens"),
        (PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.Unigram([("a", 0.0)]))), "another kind"),
    ],
)
def test_tokenizers_that_llama_cpp_would_apply_in_another_way_are_refused(tokenizer, message):
    """A word whose pairs are all later in the list is a word with a lower score, and fine."""
    if message is None:
        check_tokenizer(tokenizer, None)
    else:
        with pytest.raises(UnsupportedExportError, match=message):
            check_tokenizer(tokenizer, None)
