"""Finds tokens of the tokenizer that have no embedding in the model."""

from collections.abc import Mapping

from torch import Tensor

from evopress.models.language_model import LanguageModel

NUM_SHOWN = 4
"""How many tokens an error names."""


def check_tokens(lm: LanguageModel, texts: Mapping[str, Tensor]) -> None:
    """Raise ValueError, naming the tokens, if a text has token ids that have no row in the model's embeddings.

    `texts` has the token ids (windows, time) of every text by its name. Such ids exist if tokens were added to the
    tokenizer but not to the model. Texts without them are accepted.
    """
    for name, tokens in texts.items():
        ids = tokens[tokens >= lm.vocab_size].unique().tolist()
        if ids:
            shown = ", ".join(
                f"{lm.tokenizer.convert_ids_to_tokens(index)!r} (id {index})" for index in ids[:NUM_SHOWN]
            )
            more = f" and {len(ids) - NUM_SHOWN} more" if len(ids) > NUM_SHOWN else ""
            raise ValueError(
                f"the {name} text contains {shown}{more}, but the model has embeddings only for the ids 0 to "
                f"{lm.vocab_size - 1}: set model.tokenizer to the tokenizer that the model was trained with, add these "
                f"embeddings to the model (resize_token_embeddings of transformers), or remove the tokens from the text"
            )
