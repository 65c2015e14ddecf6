"""Generation without sub-blocks equals that with their outputs set to zero, in batches and with every cache."""

import pytest
import torch
from torch import Tensor

from evopress.models.language_model import LanguageModel
from tests.marks import slow_except
from tests.tiny_models import FAMILIES, NUM_BLOCKS, PACKED_IN_FILES, WITH_EXPERTS, tiny

CASES = (*FAMILIES, *WITH_EXPERTS, "deepseek_v2-mixed", "qwen3_next", *PACKED_IN_FILES)

LENGTH = 6
NEW_TOKENS = 14
"""More than a sliding window holds, together with the prompt."""

DROPS = [
    {0: frozenset({"attention"})},
    {0: frozenset({"attention", "mlp"})},
    {1: frozenset({"attention"})},
    {block: frozenset({"attention"}) for block in range(NUM_BLOCKS - 1)},
    {NUM_BLOCKS - 1: frozenset({"attention"}), 0: frozenset({"mlp"})},
]


def prompts() -> tuple[Tensor, Tensor]:
    """Tokens and mask of four prompts of different lengths, padded on the left."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 250, (4, LENGTH), generator=generator)
    lengths = torch.tensor([LENGTH, 1, 4, 2])
    mask = (torch.arange(LENGTH) >= LENGTH - lengths[:, None]).long()
    return tokens * mask + 258 * (1 - mask), mask


def generate(lm: LanguageModel, tokens: Tensor, mask: Tensor, **settings: object) -> Tensor:
    with torch.no_grad():
        return lm.model.generate(
            input_ids=tokens,
            attention_mask=mask,
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            do_sample=False,
            pad_token_id=258,
            **settings,
        )[:, tokens.shape[1] :]


@pytest.mark.parametrize("family", slow_except(CASES, ("llama", "gemma2", "opt", "qwen3_moe", "llama4_text")))
@pytest.mark.parametrize("dropped", DROPS, ids=range(len(DROPS)))
def test_batches_and_single_prompts_generate_the_same_as_without_a_cache(family, dropped):
    lm, (tokens, mask) = tiny(family), prompts()
    with lm.replaced({}, dropped):
        in_a_batch = generate(lm, tokens, mask)
        one_by_one = [
            generate(lm, row[row_mask > 0][None], row_mask[row_mask > 0][None])
            for row, row_mask in zip(tokens, mask, strict=True)
        ]
        without_cache = generate(lm, tokens, mask, use_cache=False)
    assert torch.equal(in_a_batch, torch.cat(one_by_one))
    assert torch.equal(in_a_batch, without_cache)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_model_without_an_attention_generates_what_one_with_zeroed_outputs_does(family):
    lm, (tokens, mask) = tiny(family), prompts()
    with lm.replaced({}, {0: frozenset({"attention"})}):
        dropped = generate(lm, tokens, mask)
    name = lm.layer_name(0, "self_attn.o_proj")
    zeros = torch.zeros_like(lm.model.get_submodule(name).weight)
    with lm.replaced({name: zeros}, {}):
        zeroed = generate(lm, tokens, mask)
    assert torch.equal(dropped, zeroed)
    assert not torch.equal(dropped, generate(lm, tokens, mask))


@pytest.mark.parametrize("cache", ["static", "dynamic", "offloaded"])
def test_every_kind_of_cache_counts_the_tokens_of_a_dropped_attention(cache):
    lm, (tokens, mask) = tiny("llama"), prompts()
    with lm.replaced({}, {0: frozenset({"attention"})}):
        expected = generate(lm, tokens, mask, use_cache=False)
        if cache == "offloaded" and not torch.cuda.is_available():
            pytest.skip("offloaded caches need a GPU")
        assert torch.equal(generate(lm, tokens, mask, cache_implementation=cache), expected)
