"""A text is refused if the model has no embeddings for some of its tokens."""

import pytest
import torch

from evopress.models.loading import wrap_model
from evopress.models.vocabulary import check_tokens
from tests.tiny_models import VOCABULARY, random_model, tokenizer


def test_tokens_without_embeddings_are_named_where_the_text_uses_them():
    tokens = tokenizer()
    tokens.add_tokens([f"<{index}>" for index in range(VOCABULARY)])
    tokens.add_tokens(["<think>", "</think>"])
    lm = wrap_model(random_model("llama"), tokens, "more-tokens")
    plain = torch.tensor([tokens("no such token")["input_ids"]])
    check_tokens(lm, {"search": plain, "test": torch.tensor([[0, VOCABULARY - 1]])})
    used = torch.tensor([tokens("</think>")["input_ids"]])
    with pytest.raises(
        ValueError, match=rf"the test text contains '</think>' \(id \d+\).*0 to {VOCABULARY - 1}.*tokenizer"
    ):
        check_tokens(lm, {"search": plain, "test": used})
    with pytest.raises(ValueError, match=rf"contains '<41>' \(id {VOCABULARY}\)"):
        check_tokens(lm, {"test": torch.tensor([[VOCABULARY]])})
