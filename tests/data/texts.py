"""Small texts and settings for the tests of data."""

from pathlib import Path
from random import Random

from evopress.data.settings import Data
from tests.tiny_models import tokenizer

TOKENS = {"calibration_tokens": 60, "search_tokens": 35, "validation_tokens": 10, "test_tokens": 20}
NUM_WINDOWS = {"calibration": 6, "search": 4, "validation": 1, "test": 2}
"""What `TOKENS` are in windows of 10 tokens."""
BOS = 256


def settings(source: Path | str, **changes) -> Data:
    return Data(**{"source": str(source), "window": 10, **TOKENS, **changes})


def ids(text: str) -> list[int]:
    return tokenizer()(text, add_special_tokens=False)["input_ids"]


def prose(length: int, seed: int = 0) -> str:
    return "".join(Random(seed).choices("abcdefghij klmnop\n", k=length))


def document(index: int) -> str:
    """One letter, different for every document, 25 times."""
    return 25 * chr(ord("A") + index)
