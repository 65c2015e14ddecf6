"""Tiny random models of every family with a byte-level tokenizer, made without a network."""

from functools import cache
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from evopress.models.language_model import LanguageModel
from evopress.models.loading import wrap_model

FAMILIES = ("llama", "mistral", "phi3", "qwen2", "qwen3", "gemma2", "gemma3_text", "opt")
WITH_EXPERTS = ("mixtral", "qwen3_moe")
NUM_EXPERTS = 5

NUM_BLOCKS = 3
SLIDING_WINDOW = 8
VOCABULARY = 300
SPECIALS = ("<s>", "</s>", "<pad>")

_SHAPE = {"hidden_size": 64, "num_hidden_layers": NUM_BLOCKS, "num_attention_heads": 4, "vocab_size": VOCABULARY}
_LLAMA = {**_SHAPE, "intermediate_size": 128, "num_key_value_heads": 2, "head_dim": 16}
_SLIDING: dict[str, object] = {
    "sliding_window": SLIDING_WINDOW,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
_CHANGES: dict[str, dict[str, object]] = {
    "mistral": {"sliding_window": None},
    "mixtral": {"sliding_window": None, "num_local_experts": NUM_EXPERTS, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": NUM_EXPERTS, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "gemma2": _SLIDING,
    "gemma3_text": _SLIDING,
}


def config(family: str) -> PretrainedConfig:
    """Three blocks, 64 wide; Gemma's blocks are sliding, full, sliding."""
    shape = {**_SHAPE, "ffn_dim": 128, "word_embed_proj_dim": 64} if family == "opt" else _LLAMA
    ids = {"bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258}
    return AutoConfig.for_model(family, **shape, **ids, max_position_embeddings=256, **_CHANGES.get(family, {}))


def random_model(family: str) -> PreTrainedModel:
    """float32; every parameter is random, biases and norms too, and large enough that every part matters."""
    model = AutoModelForCausalLM.from_config(config(family), dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed((FAMILIES + WITH_EXPERTS).index(family))
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.1 * noise if parameter.ndim > 1 else parameter + 0.1 * noise)
    return model


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, then the special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*alphabet, *SPECIALS])}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    bos, eos, pad = SPECIALS
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=eos, pad_token=pad)


def save_tiny(family: str, folder: Path) -> None:
    """Write the model and its tokenizer as a folder that transformers loads."""
    random_model(family).save_pretrained(folder)
    tokenizer().save_pretrained(folder)


@cache
def tiny(family: str) -> LanguageModel:
    """The same model in memory; shared by all tests, so they must leave it as it was."""
    return wrap_model(random_model(family), tokenizer(), f"tiny-{family}")


def token_windows(count: int, time: int, seed: int = 0) -> torch.Tensor:
    """Random token ids, int64 (count, time)."""
    return torch.randint(VOCABULARY, (count, time), generator=torch.Generator().manual_seed(seed))
