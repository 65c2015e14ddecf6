"""The cache of keys and values of each attention: what it keeps of the tokens that it has seen."""

from dataclasses import dataclass

from evopress.models.structure import ModelStructure

WINDOW_KEYS = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
"""The setting that limits how far an attention looks back, by its type in `config.layer_types`."""


@dataclass(frozen=True)
class AttentionCache:
    """The cache of one attention: `num_values` numbers for each of the last `window` tokens (None: all tokens)."""

    num_values: int
    window: int | None


NO_CACHE = AttentionCache(0, None)


def attention_caches(model: ModelStructure) -> list[AttentionCache]:
    """The cache of each block, from the configuration of the model. Blocks without an attention have none.

    Multi-head latent attention (DeepSeek) is counted as engines store it: the latent vector and the rotary part of the
    keys.
    """
    config = model.text_config
    _, kv_heads, head_dim = head_shape(model)
    num_values = 2 * kv_heads * head_dim
    if getattr(config, "kv_lora_rank", None):
        num_values = config.kv_lora_rank + config.qk_rope_head_dim

    def cache_of(layer_type: str) -> AttentionCache:
        if layer_type == "full_attention":
            return AttentionCache(num_values, None)
        key = WINDOW_KEYS.get(layer_type)
        return AttentionCache(num_values, getattr(config, key)) if key else NO_CACHE

    every_block = "sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"
    types = getattr(config, "layer_types", None) or [every_block] * model.num_blocks
    return [cache_of(layer_type) for layer_type in types]


def head_shape(model: ModelStructure) -> tuple[int, int, int]:
    """The number of heads of an attention, the number of heads of its keys and values, and the width of a head."""
    config = model.text_config
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    return heads, kv_heads, getattr(config, "head_dim", None) or config.hidden_size // heads
