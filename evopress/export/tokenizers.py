"""A tokenizer of transformers as the metadata of a GGUF file."""

import json
from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerBase

from evopress.export.base import Refused
from evopress.models.language_model import LanguageModel

if TYPE_CHECKING:
    from gguf import GGUFWriter

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

PATTERNS = {LLAMA3: "llama-bpe", QWEN2: "qwen2"}
"""llama.cpp's name of the splitting rule, by its regular expression."""


def backend(tokenizer: PreTrainedTokenizerBase) -> dict:
    """The tokenizer's JSON. Raises Refused for one that is not byte-level BPE."""
    fast = getattr(tokenizer, "backend_tokenizer", None)
    found = json.loads(fast.to_str()) if fast is not None else {}
    if found.get("model", {}).get("type") != "BPE" or found["model"].get("byte_fallback"):
        raise Refused(
            "export.formats=[gguf] holds byte-level BPE tokenizers (as of GPT-2, Llama 3, Qwen, SmolLM), and this "
            "model has another: use export.formats=[compressed_tensors] or [hf]"
        )
    return found


def pre_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """llama.cpp's name for how the tokenizer splits text before BPE. Raises Refused when that is not recognised."""
    found = backend(tokenizer).get("pre_tokenizer") or {}
    parts = found.get("pretokenizers", [found])
    kinds = [part.get("type") for part in parts]
    if kinds == ["ByteLevel"] and parts[0].get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and parts[0].get("individual_digits") and parts[1].get("use_regex", True):
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and parts[0]["pattern"].get("Regex") in PATTERNS:
        return PATTERNS[parts[0]["pattern"]["Regex"]]
    raise Refused(
        f"how this tokenizer splits text ({', '.join(map(str, kinds))}) is not one of those known here: set "
        "export.pre_tokenizer to llama.cpp's name for it, for example llama-bpe or gpt-2"
    )


def add_tokenizer(writer: "GGUFWriter", lm: LanguageModel, pre: str) -> None:
    """Tokens with their types, merges, special tokens and chat template."""
    from gguf import TokenType

    tokenizer, described = lm.tokenizer, backend(lm.tokenizer)
    named = {index: token for token, index in tokenizer.get_vocab().items()}
    added = {entry["id"]: entry["special"] for entry in described.get("added_tokens", [])}
    tokens, types = [], []
    for index in range(lm.vocab_size):
        tokens.append(named.get(index, f"[PAD{index}]"))
        if index not in named:
            types.append(TokenType.UNUSED)
        elif index in added:
            types.append(TokenType.CONTROL if added[index] else TokenType.USER_DEFINED)
        else:
            types.append(TokenType.NORMAL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in described["model"]["merges"]]
    if merges:
        writer.add_token_merges(merges)
    _add_special_tokens(writer, tokenizer)


def tokenizer_bytes(lm: LanguageModel) -> int:
    """Bytes that tokens, their types and merges take in a GGUF file; strings have a length of 8 bytes before them."""
    named = {index: token for token, index in lm.tokenizer.get_vocab().items()}
    tokens = sum(len(named.get(index, f"[PAD{index}]").encode()) + 8 + 4 for index in range(lm.vocab_size))
    merges = (pair if isinstance(pair, str) else " ".join(pair) for pair in backend(lm.tokenizer)["model"]["merges"])
    return tokens + sum(len(pair.encode()) + 8 for pair in merges) + len((lm.tokenizer.chat_template or "").encode())


def _add_special_tokens(writer: "GGUFWriter", tokenizer: PreTrainedTokenizerBase) -> None:
    special = {
        writer.add_bos_token_id: tokenizer.bos_token_id,
        writer.add_eos_token_id: tokenizer.eos_token_id,
        writer.add_unk_token_id: tokenizer.unk_token_id,
        writer.add_pad_token_id: tokenizer.pad_token_id,
    }
    for add, index in special.items():
        if index is not None:
            add(index)
    first = tokenizer("a")["input_ids"][:1]
    writer.add_add_bos_token(tokenizer.bos_token_id is not None and first == [tokenizer.bos_token_id])
    writer.add_add_space_prefix(False)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)
