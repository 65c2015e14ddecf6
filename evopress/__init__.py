"""Dynamic, non-uniform compression of large language models by evolutionary search.

`evopress.compress(model, tokenizer, budget=…, folder=…)` does the whole job, `evopress.load(path)` reads a checkpoint.
"""

from typing import Any

__all__ = ["compress", "load"]


def __getattr__(name: str) -> Any:
    """`compress` and `load` are imported on first use, because transformers takes seconds to import."""
    if name == "compress":
        from evopress.api import compress

        return compress
    if name == "load":
        from evopress.export import load

        return load
    raise AttributeError(f"module 'evopress' has no attribute {name!r}")
