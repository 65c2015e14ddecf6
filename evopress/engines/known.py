"""The engines that can measure checkpoints, and what they need."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Engine:
    """An inference engine: its name for people, its Python module, and the packages that bring the module."""

    title: str
    module: str
    packages: str


ENGINES: Mapping[str, Engine] = {
    "llama_cpp": Engine("llama.cpp", "llama_cpp", "llama-cpp-python numpy"),
    "vllm": Engine("vLLM", "vllm", "vllm"),
}
"""The values of `eval.engine`. `Format.engines` says which of them load a format."""
