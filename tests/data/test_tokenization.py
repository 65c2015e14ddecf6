"""The tokens of the start of a text are those of the whole text, and cost no more than they must."""

import json
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import evopress
from evopress.data import tokenization
from evopress.data.sources import TOPICS
from evopress.data.tokenization import first_ids

TOPIC_TEXTS = json.loads(TOPICS.read_text(encoding="utf-8"))
TEXT = "\n\n".join(TOPIC_TEXTS[name] for name in sorted(TOPIC_TEXTS)[:20])


@cache
def trained(kind: str) -> PreTrainedTokenizerFast:
    """Tokenizers as models have them: of Llama 3 and GPT-2, of Llama 2 (no pre-tokenizer), of T5, of BERT."""
    special = ["<unk>"]
    if kind == "byte_level":
        return AutoTokenizer.from_pretrained(Path(evopress.__file__).parent / "assets/tiny")
    if kind == "sentencepiece_bpe":
        backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        backend.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
        backend.train_from_iterator(
            [TEXT], trainers.BpeTrainer(vocab_size=800, special_tokens=special, show_progress=False)
        )
        backend.pre_tokenizer = None
    elif kind == "unigram":
        backend = Tokenizer(models.Unigram())
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=600, special_tokens=special, unk_token="<unk>", show_progress=False
        )
        backend.train_from_iterator([TEXT], trainer)
    else:
        backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
        backend.normalizer = normalizers.BertNormalizer()
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.train_from_iterator(
            [TEXT], trainers.WordPieceTrainer(vocab_size=800, special_tokens=special, show_progress=False)
        )
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


def pieces_of(text: str, size: int) -> list[str]:
    return [text[start : start + size] for start in range(0, len(text), size)]


def whole(kind: str, text: str) -> list[int]:
    return trained(kind)(text, add_special_tokens=False)["input_ids"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece_bpe", "unigram", "wordpiece"])
@settings(max_examples=25, deadline=None)
@given(start=st.integers(0, 30_000), num_tokens=st.integers(1, 2000), piece=st.integers(50, 3000))
def test_the_first_tokens_are_those_of_the_whole_text(kind, start, num_tokens, piece):
    text = TEXT[start : start + 30_000]
    assert first_ids(pieces_of(text, piece), trained(kind), num_tokens).ids == whole(kind, text)[:num_tokens]


@pytest.mark.parametrize("text", ["", "a", " \n" * 9000, "x" * 20_000, "é" * 9000, "12345" * 4000, "a b\r\n" * 4000])
def test_texts_without_words_are_cut_at_the_same_tokens_too(text):
    for num_tokens in (1, 700, 100_000):
        assert (
            first_ids(pieces_of(text, 1000), trained("byte_level"), num_tokens).ids
            == whole("byte_level", text)[:num_tokens]
        )


def test_no_more_of_a_text_is_read_than_its_first_tokens_need():
    read = 0

    def endless():
        nonlocal read
        while True:
            read += 1
            yield TEXT[:1000]

    assert len(first_ids(endless(), trained("byte_level"), 100).ids) == 100
    assert read < 12


def test_all_tokens_are_those_of_the_whole_text(monkeypatch):
    monkeypatch.setattr(tokenization, "CHARACTERS_PER_TOKEN", 1)
    text = TEXT[:20_000]
    start = first_ids(pieces_of(text, 999), trained("byte_level"), None)
    assert start.ids == whole("byte_level", text) and start.is_whole
    assert first_ids(pieces_of(text, 999), trained("byte_level"), 3000).ids == start.ids[:3000]


def test_what_was_read_of_a_text_is_known():
    text = TEXT[:20_000]
    assert first_ids([text], trained("byte_level"), 19_000)[1:] == (text, True)
    start = first_ids(["\n\n", text], trained("byte_level"), 10)
    assert ("\n\n" + text).startswith(start.text) and not start.is_whole
