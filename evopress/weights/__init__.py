"""Compressed weights in the packed form in which they are stored. Imports no other room."""

from evopress.weights.dense import Dropped, Kept
from evopress.weights.ggml import GgmlWeight
from evopress.weights.integer import QuantizedWeight
from evopress.weights.kquants import KWeight
from evopress.weights.sparse import SparseWeight

__all__ = ["Dropped", "GgmlWeight", "KWeight", "Kept", "QuantizedWeight", "SparseWeight"]
