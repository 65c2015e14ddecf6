"""The cache that is computed from a configuration is the cache that the model fills."""

import pytest
import torch

from evopress.models.attention_cache import NO_CACHE, AttentionCache, attention_caches
from tests.tiny_models import ALL_FAMILIES, NUM_BLOCKS, SLIDING_WINDOW, config, tiny, token_windows

LATENT = tuple(family for family in ALL_FAMILIES if family.startswith("deepseek"))


def filled(family: str, num_tokens: int) -> list[int]:
    """How many numbers per token transformers keeps for each block, after one token has followed `num_tokens` - 1."""
    model, tokens = tiny(family).model, token_windows(1, num_tokens)
    with torch.no_grad():
        cache = model(input_ids=tokens[:, :-1], use_cache=True).past_key_values
        cache = model(input_ids=tokens[:, -1:], past_key_values=cache, use_cache=True).past_key_values
    kept = [(layer.keys, layer.values) if hasattr(layer, "keys") else () for layer in cache.layers]
    return [sum(tensor.numel() for tensor in tensors) for tensors in kept]


@pytest.mark.parametrize("family", [family for family in ALL_FAMILIES if family not in LATENT])
def test_every_block_keeps_as_many_numbers_per_token_as_the_model(family):
    caches = attention_caches(tiny(family))
    assert len(caches) == NUM_BLOCKS
    assert [cache.num_values * 5 for cache in caches] == filled(family, 5)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3_text", "gemma3", "mistral"])
def test_an_attention_forgets_what_lies_before_its_window(family):
    """transformers leaves out the oldest token of a window, because the next one takes its place."""
    windows = [cache.window for cache in attention_caches(tiny(family))]
    kept = [cache.num_values * min(20, (cache.window or 99) - 1) for cache in attention_caches(tiny(family))]
    assert kept == filled(family, 20)
    assert (SLIDING_WINDOW in windows) == family.startswith("gemma")


def test_a_window_of_the_whole_model_holds_for_every_block():
    lm = tiny("mistral")
    lm.model.config.sliding_window = 7
    try:
        assert {cache.window for cache in attention_caches(lm)} == {7}
    finally:
        lm.model.config.sliding_window = None


@pytest.mark.parametrize("family", LATENT)
def test_latent_attention_keeps_the_latent_vector_and_the_rotary_part(family):
    settings = config(family)
    expected = AttentionCache(settings.kv_lora_rank + settings.qk_rope_head_dim, None)
    assert attention_caches(tiny(family)) == [expected] * NUM_BLOCKS


def test_blocks_without_an_attention_have_no_cache():
    lm = tiny("llama")
    lm.model.config.layer_types = ["full_attention", "linear_attention", "mamba"]
    try:
        full, *others = attention_caches(lm)
    finally:
        del lm.model.config.layer_types
    assert full.num_values > 0 and others == [NO_CACHE, NO_CACHE]
