"""Dynamic, non-uniform compression of large language models by evolutionary search.

`evopress.compress(model, tokenizer, budget=…, folder=…)` runs the whole job; `evopress.load(path)` loads a checkpoint.
"""

from typing import Any

__all__ = ["compress", "load"]


def __getattr__(name: str) -> Any:
    """Import `compress` and `load` on first use: they need torch and transformers, which take seconds to import."""
    if name == "compress":
        from evopress.api import compress

        return compress
    if name == "load":
        from evopress.export import load

        return load
    raise AttributeError(f"module 'evopress' has no attribute {name!r}")
