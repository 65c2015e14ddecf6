"""Tokens of the tokenizer for which the model has no embedding."""

from collections.abc import Mapping

from torch import Tensor

from evopress.models.language_model import LanguageModel

NUM_SHOWN = 4
"""How many tokens an error names."""


def check_tokens(lm: LanguageModel, tokens_of: Mapping[str, Tensor]) -> None:
    """Raises ValueError, naming the tokens, for text with token ids that have no row in the model's embeddings.

    `tokens_of` has token ids (windows, time) by the name of their text. Such ids are those of tokens that were added
    to the tokenizer only. A text without them is fine.
    """
    for name, tokens in tokens_of.items():
        ids = tokens[tokens >= lm.vocab_size].unique().tolist()
        if ids:
            shown = ", ".join(
                f"{lm.tokenizer.convert_ids_to_tokens(index)!r} (id {index})" for index in ids[:NUM_SHOWN]
            )
            more = f" and {len(ids) - NUM_SHOWN} more" if len(ids) > NUM_SHOWN else ""
            raise ValueError(
                f"the {name} text contains {shown}{more}, and the model has embeddings for the ids 0 to "
                f"{lm.vocab_size - 1} only: set model.tokenizer to the tokenizer that the model was trained with, give "
                f"the model these embeddings (resize_token_embeddings of transformers), or take them out of the text"
            )
