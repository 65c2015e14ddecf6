"""The checkpoint formats, one per module. Importing this package registers them."""

from evopress.export.formats.compressed_tensors import CompressedTensors
from evopress.export.formats.gguf import GGUFFile
from evopress.export.formats.hf import DenseSafetensors
from evopress.export.formats.nemotron_nas import NemotronNAS
from evopress.export.formats.zeroed import ZeroedSafetensors

__all__ = ["CompressedTensors", "DenseSafetensors", "GGUFFile", "NemotronNAS", "ZeroedSafetensors"]
