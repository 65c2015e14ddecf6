"""Reads compressed layers from checkpoints that other tools made of the same model.

Only safetensors, GGUF and JSON files are read. May import `runtime` and `weights`.
"""

from evopress.imports.base import Source, StoredLayer
from evopress.imports.imatrix import power_of
from evopress.imports.opened import open_sources

__all__ = ["Source", "StoredLayer", "open_sources", "power_of"]
