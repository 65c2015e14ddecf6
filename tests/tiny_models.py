"""Tiny random models of every family with a byte-level tokenizer, made without a network."""

from copy import deepcopy
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
WITH_SHARED_EXPERTS = ("qwen2_moe", "dots1", "deepseek_v2", "deepseek_v3")
SCALED = ("granite", "cohere")
WITH_VISION = ("gemma3",)
MIXED = (
    "qwen2_moe-mixed",
    "qwen3_moe-mixed",
    "deepseek_v2-mixed",
    "deepseek_v3-mixed",
    "glm4_moe",
    "qwen3_next",
    "llama4_text",
)
"""Families whose blocks differ. What follows the type of a model names a variant of it."""
PACKED_IN_FILES = ("llama4_text", "gpt_oss")
"""Families whose checkpoints have the matrices of all experts of a block in one tensor."""
ALL_FAMILIES = (*FAMILIES, *WITH_EXPERTS, *WITH_SHARED_EXPERTS, *SCALED, *WITH_VISION, *MIXED, "gpt_oss")
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
_SHARED_EXPERT: dict[str, object] = {
    "num_experts": NUM_EXPERTS,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}
_SHARED_EXPERTS: dict[str, object] = {
    "n_routed_experts": NUM_EXPERTS,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 0,
}
_ORIGINAL = {"original_max_position_embeddings": 32, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False}
_LATENT_ATTENTION: dict[str, object] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "head_dim": 8,
}
_VISION: dict[str, object] = {
    "model_type": "siglip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
_CHANGES: dict[str, dict[str, object]] = {
    "mistral": {"sliding_window": None},
    "mixtral": {"sliding_window": None, "num_local_experts": NUM_EXPERTS, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": NUM_EXPERTS, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "qwen2_moe": _SHARED_EXPERT,
    "dots1": {**_SHARED_EXPERTS, "layer_types": ["full_attention"] * NUM_BLOCKS},
    "deepseek_v2": {**_SHARED_EXPERTS, **_LATENT_ATTENTION},
    "deepseek_v3": {**_SHARED_EXPERTS, **_LATENT_ATTENTION},
    "granite": {
        "embedding_multiplier": 12.0,
        "logits_scaling": 8.0,
        "residual_multiplier": 0.22,
        "attention_multiplier": 0.0156,
    },
    "cohere": {"logit_scale": 0.0625},
    "gemma2": _SLIDING,
    "gemma3_text": _SLIDING,
    "glm4_moe": {**_SHARED_EXPERTS, "first_k_dense_replace": 1, "use_qk_norm": True},
    "gpt_oss": {
        "num_local_experts": NUM_EXPERTS,
        "num_experts_per_tok": 2,
        "intermediate_size": 32,
        "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, **_ORIGINAL},
        "sliding_window": SLIDING_WINDOW,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "llama4_text": {
        "num_local_experts": NUM_EXPERTS,
        "num_experts_per_tok": 2,
        "intermediate_size": 32,
        "intermediate_size_mlp": 128,
        "interleave_moe_layer_step": 2,
        "no_rope_layers": [1, 1, 0],
        "attention_chunk_size": SLIDING_WINDOW,
    },
    "qwen3_next": {
        **_SHARED_EXPERT,
        "layer_types": ["linear_attention", "linear_attention", "full_attention"],
        "mlp_only_layers": [1],
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
    },
}
_VARIANTS: dict[str, dict[str, object]] = {
    "qwen2_moe-mixed": {"mlp_only_layers": [0]},
    "qwen3_moe-mixed": {"decoder_sparse_step": 2},
    "deepseek_v2-mixed": {"first_k_dense_replace": 1, "q_lora_rank": None},
    "deepseek_v3-mixed": {"first_k_dense_replace": 2},
}


def config(family: str) -> PretrainedConfig:
    """Three blocks, 64 wide; Gemma's blocks are sliding, full, sliding. "gemma3" has a vision tower next to them."""
    if family == "gemma3":
        text = config("gemma3_text").to_dict()
        return AutoConfig.for_model(family, text_config=text, vision_config=_VISION, mm_tokens_per_image=4)
    shape = {**_SHAPE, "ffn_dim": 128, "word_embed_proj_dim": 64} if family == "opt" else _LLAMA
    ids = {"bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258}
    model_type = family.partition("-")[0]
    changes = deepcopy({**_CHANGES.get(model_type, {}), **_VARIANTS.get(family, {})})
    return AutoConfig.for_model(model_type, **{**shape, **ids, "max_position_embeddings": 256, **changes})


def random_model(family: str) -> PreTrainedModel:
    """float32; every parameter is random, biases and norms too, and large enough that every part matters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # some vectors do not start with one value (Qwen3-Next, gpt-oss)
        model = AutoModelForCausalLM.from_config(config(family), dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(ALL_FAMILIES.index(family))
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.1 * noise if parameter.ndim > 1 else parameter + 0.1 * noise)
    return model


def tokenizer(*pairs: tuple[str, str]) -> PreTrainedTokenizerFast:
    """One token per byte, then the special ones, then one for each pair of tokens that is merged."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merged = ["".join(pair) for pair in pairs]
    vocabulary = {token: index for index, token in enumerate([*alphabet, *SPECIALS, *merged])}
    backend = Tokenizer(models.BPE(vocabulary, list(pairs)))
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


def wide_llama() -> LanguageModel:
    """One block whose layers read 256 or 512 inputs, as the K types of GGUF need; random, like `random_model`."""
    wide = config("llama")
    wide.update({"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 1, "head_dim": 64})
    model = AutoModelForCausalLM.from_config(wide, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.05 * noise if parameter.ndim > 1 else parameter + 0.1 * noise)
    return wrap_model(model, tokenizer(("t", "h"), ("th", "e")), "wide-llama")  # llama.cpp reads no file without merges


def token_windows(count: int, time: int, seed: int = 0) -> torch.Tensor:
    """Random token ids, int64 (count, time)."""
    return torch.randint(VOCABULARY, (count, time), generator=torch.Generator().manual_seed(seed))
