"""Tokenizers of SentencePiece with byte fallback (Llama 2, Mistral, Phi-3, Gemma) as llama.cpp reads them.

llama.cpp merges the two neighbours whose joined text is the token with the highest score. The fast tokenizers of
transformers merge the pair that comes first in a list. The two agree if the list has all pairs of tokens that join to a
token, one after the other, as lists that were made from SentencePiece models have. In both, a character that is no
token becomes the tokens of its bytes.
"""

from collections.abc import Collection, Iterable, Mapping

from evopress.export.base import UnsupportedExportError

SPACE = "▁"
"""The character that stands for a space."""

REMEDY = "use export.formats=[compressed_tensors] or [hf]"

_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_METASPACE = {"type": "Metaspace", "replacement": SPACE, "split": False, "prepend_scheme": None}
_SPLIT_AT_SPACES = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}


def is_sentencepiece(description: Mapping) -> bool:
    """Whether a fast tokenizer's JSON describes byte-pair encoding with byte fallback."""
    return description["model"].get("type") == "BPE" and bool(description["model"].get("byte_fallback"))


def has_space_prefix(description: Mapping) -> bool:
    """Whether a space is put before the text. Raises UnsupportedExportError if the text is changed in another way."""
    normalizer, rule = description.get("normalizer") or {}, description.get("pre_tokenizer") or {}
    steps = normalizer.get("normalizers", [normalizer])
    if (
        not normalizer
        and rule.get("type") == "Metaspace"
        and rule.get("replacement") == SPACE
        and not rule.get("split")
    ):
        return rule.get("prepend_scheme") != "never"
    if steps[-1] == _REPLACE and rule in (
        {},
        _SPLIT_AT_SPACES,
    ):  # after the replacement, no spaces are left to split at
        if len(steps) == 1:
            return False
        if steps[:-1] == [{"type": "Prepend", "prepend": SPACE}]:
            return True
    raise UnsupportedExportError(
        f"export.formats=[gguf] does not know how this tokenizer prepares text (normalizer {normalizer.get('type')}, "
        f"pre-tokenizer {rule.get('type')}): {REMEDY}"
    )


def token_scores(description: Mapping) -> dict[str, float]:
    """The score of every token that merges make: 0 for the first one in the list, and 1 less for each one after it.

    Raises UnsupportedExportError if llama.cpp would merge in another order than the list.
    """
    vocabulary, merges = description["model"]["vocab"], _merges(description)
    scores = {
        token: -float(rank) for rank, token in enumerate(dict.fromkeys(first + second for first, second in merges))
    }
    in_order = sorted(merges, key=lambda pair: -scores["".join(pair)])  # keeps the order of equal scores
    if in_order != merges or not _pairs_that_join(vocabulary, scores) <= set(merges):
        raise UnsupportedExportError(
            "export.formats=[gguf] holds tokenizers with byte fallback whose merges come from SentencePiece, but with "
            f"the merges of this one, llama.cpp would find other tokens: {REMEDY}"
        )
    return scores


def _merges(description: Mapping) -> list[tuple[str, str]]:
    pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in description["model"]["merges"])
    return [(first, second) for first, second in pairs]


def _pairs_that_join(vocabulary: Collection[str], tokens: Iterable[str]) -> set[tuple[str, str]]:
    """All pairs of tokens that join to one of `tokens`."""
    return {
        (token[:cut], token[cut:])
        for token in tokens
        for cut in range(1, len(token))
        if token[:cut] in vocabulary and token[cut:] in vocabulary
    }
