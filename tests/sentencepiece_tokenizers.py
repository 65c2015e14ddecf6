"""Small tokenizers like those from SentencePiece models with byte fallback, and the algorithm of llama.cpp."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPACE = "▁"
SPECIALS = ("<unk>", "<s>", "</s>")
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
WORDS = ("th", "in", "er", "▁t", "▁th", "he", "the", "▁the", "ing", "▁▁", "re", "there", "▁there")
"""Tokens made by merges, the first ones first."""

TEXTS = (
    "the other there",
    "  two spaces, then more   and a trailing one ",
    "nation\n\ttabs there\n\n",
    "é漢字 🙂 naïve, unseen characters",
    "herein the▁thing",
    "",
)


VOCABULARY = {
    token: index for index, token in enumerate([*SPECIALS, *BYTES, *WORDS, *"abcdefghijklmnopqrstuvwxyz,", SPACE])
}
"""300 tokens."""

PAIRS = [
    (word[:cut], word[cut:])
    for word in WORDS
    for cut in range(1, len(word))
    if word[:cut] in VOCABULARY and word[cut:] in VOCABULARY
]
"""All pairs of tokens that join to a word, word by word."""


def sentencepiece(
    pairs: Sequence[tuple[str, str]] = PAIRS,
    *,
    normalizer: normalizers.Normalizer | None = None,
    pre_tokenizer: pre_tokenizers.PreTokenizer | None = None,
) -> PreTrainedTokenizerFast:
    """By default, a space is put before the text, as Llama 2 does it."""
    backend = Tokenizer(models.BPE(VOCABULARY, list(pairs), unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if normalizer is None and pre_tokenizer is None:
        normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    if normalizer is not None:
        backend.normalizer = normalizer
    if pre_tokenizer is not None:
        backend.pre_tokenizer = pre_tokenizer
    backend.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def tokens_in_llama_cpp(text: str, metadata: Mapping) -> list[int]:
    """The tokens of a text by the metadata of a GGUF file, as llm_tokenizer_spm of llama.cpp finds them."""
    tokens, scores = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"]
    index_of = {token: index for index, token in enumerate(tokens)}
    prefix = " " if metadata["tokenizer.ggml.add_space_prefix"] and text else ""
    symbols = list((prefix + text).replace(" ", SPACE))
    while True:
        joined = [first + second for first, second in pairwise(symbols)]
        known = [place for place, token in enumerate(joined) if token in index_of]
        if not known:
            break
        best = max(known, key=lambda place: (scores[index_of[joined[place]]], -place))
        symbols[best : best + 2] = [joined[best]]
    bytes_of = {symbol: [index_of[f"<0x{byte:02X}>"] for byte in symbol.encode()] for symbol in symbols}
    return [index for symbol in symbols for index in ([index_of[symbol]] if symbol in index_of else bytes_of[symbol])]
