"""Compressed weights in the packed form in which they are stored. Imports no other room."""

from evopress.weights.bf16 import BF16
from evopress.weights.dense import Dropped, Kept
from evopress.weights.fp8 import FP8Weight
from evopress.weights.fp8_block import FP8BlockWeight
from evopress.weights.ggml import GgmlWeight
from evopress.weights.int4 import INT4
from evopress.weights.int8 import INT8
from evopress.weights.integer import QuantizedWeight
from evopress.weights.kquants import KWeight
from evopress.weights.mxfp4 import MXFP4Weight
from evopress.weights.nvfp4 import NVFP4Weight
from evopress.weights.sparse import SparseWeight

__all__ = [
    "BF16",
    "INT4",
    "INT8",
    "Dropped",
    "FP8BlockWeight",
    "FP8Weight",
    "GgmlWeight",
    "KWeight",
    "Kept",
    "MXFP4Weight",
    "NVFP4Weight",
    "QuantizedWeight",
    "SparseWeight",
]
