"""Profiles and questions as JSON."""

import string

from evopress.search.base import Batch, Question
from evopress.space.units import Profile

_DIGITS = string.digits + string.ascii_letters


def encode(profile: Profile) -> str:
    """One character per unit: 0-9, a-z, A-Z. A unit can have at most 62 levels."""
    return "".join(map(_DIGITS.__getitem__, profile))


def decode(text: str) -> Profile:
    """The inverse of `encode`."""
    return tuple(map(_DIGITS.index, text))


def question_key(question: Question) -> dict[str, object]:
    """The fields that identify a question, as JSON values."""
    excerpt = {} if question.excerpt is None else {"excerpt": question.excerpt}
    if isinstance(question, Batch):
        return excerpt | {
            "ask": "batch",
            "label": question.label,
            "fitness": question.fitness,
            "tokens": question.num_tokens,
            "profiles": [encode(profile) for profile in question.profiles],
        }
    key: dict[str, object] = excerpt | {
        "ask": question.kind,
        "tokens": question.num_tokens,
        "arguments": list(question.arguments),
    }
    return key if question.profile is None else {**key, "profile": encode(question.profile)}
