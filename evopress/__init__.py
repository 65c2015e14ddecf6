"""Dynamic, non-uniform compression of large language models by evolutionary search.

`evopress.compress(model, tokenizer, budget=…, folder=…)` does the whole job, `evopress.load(path)` reads a checkpoint.
"""

from typing import Any

import evopress.compress as compress

__all__ = ["compress", "load"]


def __getattr__(name: str) -> Any:
    """`load` is imported on first use: the program starts in a fraction of the seconds that transformers takes."""
    if name == "load":
        from evopress.export import load

        return load
    raise AttributeError(f"module 'evopress' has no attribute {name!r}")
