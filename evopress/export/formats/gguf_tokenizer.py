"""Writes a tokenizer of transformers as metadata of a GGUF file."""

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerBase

from evopress.export.base import UnsupportedExportError
from evopress.export.formats.gguf_sentencepiece import has_space_prefix, is_sentencepiece, token_scores
from evopress.models.language_model import LanguageModel

if TYPE_CHECKING:
    from gguf import GGUFWriter, TokenType

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")

RULES = {LLAMA3: "llama-bpe", QWEN2: "qwen2"}
"""llama.cpp's names of splitting rules, by regular expression."""


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, pre_tokenizer: str | None) -> None:
    """Raise UnsupportedExportError for a tokenizer that llama.cpp cannot run. `pre_tokenizer` is its rule, if known."""
    description = fast_tokenizer(tokenizer)
    if is_sentencepiece(description):
        has_space_prefix(description)
        token_scores(description)
    elif pre_tokenizer is None:
        pre_tokenizer_name(description)


def fast_tokenizer(tokenizer: PreTrainedTokenizerBase) -> dict:
    """The tokenizer's JSON. Raises UnsupportedExportError for a tokenizer that is not byte-pair encoding."""
    fast = getattr(tokenizer, "backend_tokenizer", None)
    description = json.loads(fast.to_str()) if fast is not None else {}
    if description.get("model", {}).get("type") != "BPE":
        raise UnsupportedExportError(
            "export.formats=[gguf] holds tokenizers with byte-pair encoding, byte-level (as in GPT-2, Llama 3, Qwen, "
            "SmolLM) or with byte fallback (as in Llama 2, Mistral), but this model has another kind: use "
            "export.formats=[compressed_tensors] or [hf]"
        )
    return description


def pre_tokenizer_name(description: Mapping) -> str:
    """llama.cpp's name of the rule that splits text before BPE. Raises UnsupportedExportError for an unknown rule."""
    rule = description.get("pre_tokenizer") or {}
    steps = rule.get("pretokenizers", [rule])
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits") and steps[1].get("use_regex", True):
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and steps[0]["pattern"].get("Regex") in RULES:
        return RULES[steps[0]["pattern"]["Regex"]]
    raise UnsupportedExportError(
        f"export.formats=[gguf] does not know the rule by which this tokenizer splits text "
        f"({', '.join(map(str, kinds))}): set export.pre_tokenizer to llama.cpp's name for it, for example llama-bpe "
        "or gpt-2"
    )


def add_tokenizer(writer: "GGUFWriter", lm: LanguageModel, pre_tokenizer: str | None) -> None:
    """Add tokens with their types, merges or scores, special tokens and chat template."""
    description = fast_tokenizer(lm.tokenizer)
    tokens, types = _tokens_and_types(lm, description)
    if is_sentencepiece(description):
        scores = token_scores(description)
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_scores([scores.get(token, 0.0) for token in tokens])
        writer.add_add_space_prefix(has_space_prefix(description))
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre_tokenizer or pre_tokenizer_name(description))
        if merges := _merges(description):
            writer.add_token_merges(merges)
        writer.add_add_space_prefix(False)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    _add_special_tokens(writer, lm.tokenizer)


def _tokens_and_types(lm: LanguageModel, description: Mapping) -> tuple[list[str], list["TokenType"]]:
    """The text and the type of the token for every row of the embeddings. Rows without a token are padding."""
    from gguf import TokenType  # optional package

    text_of = _token_texts(lm)
    is_special = {entry["id"]: entry["special"] for entry in description.get("added_tokens", [])}

    def type_of(index: int) -> TokenType:
        if index not in text_of:
            return TokenType.UNUSED
        if is_sentencepiece(description) and index == lm.tokenizer.unk_token_id:
            return TokenType.UNKNOWN
        if index in is_special:
            return TokenType.CONTROL if is_special[index] else TokenType.USER_DEFINED
        is_byte = is_sentencepiece(description) and BYTE_TOKEN.fullmatch(text_of[index])
        return TokenType.BYTE if is_byte else TokenType.NORMAL

    indices = range(lm.vocab_size)
    return [text_of.get(index, _padding(index)) for index in indices], [type_of(index) for index in indices]


def _token_texts(lm: LanguageModel) -> dict[int, str]:
    return {index: token for token, index in lm.tokenizer.get_vocab().items()}


def _padding(index: int) -> str:
    return f"[PAD{index}]"


def _merges(description: Mapping) -> list[str]:
    return [pair if isinstance(pair, str) else " ".join(pair) for pair in description["model"]["merges"]]


def tokenizer_bytes(lm: LanguageModel) -> int:
    """Bytes of tokens, types, merges or scores, and chat templates in a GGUF file. Strings have 8-byte lengths."""
    text_of = _token_texts(lm)
    tokens = sum(len(text_of.get(index, _padding(index)).encode()) + 8 + 4 for index in range(lm.vocab_size))
    description = fast_tokenizer(lm.tokenizer)
    if is_sentencepiece(description):
        merges = 4 * lm.vocab_size  # scores
    else:
        merges = sum(len(merge.encode()) + 8 for merge in _merges(description))
    templates = sum(len(name.encode()) + 8 + len(text.encode()) for name, text in _templates(lm.tokenizer).items())
    return tokens + merges + templates


def _templates(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Chat templates by name; one without a name is the default."""
    template = tokenizer.chat_template
    return template if isinstance(template, dict) else {"default": template} if template else {}


def _add_special_tokens(writer: "GGUFWriter", tokenizer: PreTrainedTokenizerBase) -> None:
    add_token_id = {
        writer.add_bos_token_id: tokenizer.bos_token_id,
        writer.add_eos_token_id: tokenizer.eos_token_id,
        writer.add_unk_token_id: tokenizer.unk_token_id,
        writer.add_pad_token_id: tokenizer.pad_token_id,
    }
    for add, index in add_token_id.items():
        if index is not None:
            add(index)
    first = tokenizer("a")["input_ids"][:1]
    writer.add_add_bos_token(tokenizer.bos_token_id is not None and first == [tokenizer.bos_token_id])
    if templates := _templates(tokenizer):
        writer.add_chat_template([{"name": name, "template": text} for name, text in templates.items()])
