"""Checks for the limits of llama.cpp and of GGUF files."""

from collections.abc import Iterable

from transformers import PretrainedConfig

from evopress.compressors.base import Compressor
from evopress.compressors.drop import Drop
from evopress.compressors.integer_levels import IntegerLevels
from evopress.export.base import UnsupportedExportError
from evopress.export.formats.gguf_tensors import ARCHITECTURES, renaming
from evopress.export.state import untied_tensors
from evopress.models.structure import ModelStructure
from evopress.space.shapes import LayerShape
from evopress.weights.block_grids import BLOCK, TypeName
from evopress.weights.integer import TYPES_OF_WIDTHS


def check_grids(compressor: Compressor | Drop) -> None:
    """Raise UnsupportedExportError for a compressor, other than GGUF, whose levels are not on grids of block types."""
    if not isinstance(compressor, IntegerLevels):
        raise UnsupportedExportError(
            f"export.formats=[gguf] holds block types, which compress={type(compressor).__name__.lower()} does not "
            "make: use compress=gguf, or export.formats=[hf]"
        )
    fits = compressor.symmetric and compressor.group_size == BLOCK and compressor.scale_dtype == "float16"
    if not fits or set(compressor.bits) - set(TYPES_OF_WIDTHS):
        raise UnsupportedExportError(
            "export.formats=[gguf] holds integer codes only of 4, 5 and 8 bits, symmetric, in groups of 32, with "
            "float16 scales: use compress=gguf, or set compress.bits=[4,5,8] compress.symmetric=true "
            "compress.group_size=32 compress.scale_dtype=float16"
        )


def check_architecture(config: PretrainedConfig) -> None:
    """Raise UnsupportedExportError for an unsupported model type, kind of position embeddings, or activation."""
    if config.model_type not in ARCHITECTURES:
        raise UnsupportedExportError(
            f"export.formats=[gguf] supports {', '.join(ARCHITECTURES)}, but this model is {config.model_type}: use "
            "export.formats=[compressed_tensors] or [hf]"
        )
    rope_type = config.rope_parameters.get("rope_type", "default")
    if rope_type not in ("default", "llama3"):
        raise UnsupportedExportError(
            f"export.formats=[gguf] does not support {rope_type} rope scaling: use "
            "export.formats=[compressed_tensors] or [hf]"
        )
    if config.hidden_act != "silu":
        raise UnsupportedExportError(
            f"export.formats=[gguf]: llama.cpp runs {config.model_type} with the activation silu, but this model has "
            f"{config.hidden_act}: use export.formats=[compressed_tensors] or [hf]"
        )


def check_attention(config: PretrainedConfig, window: int) -> None:
    """Raise UnsupportedExportError for windows longer than the sliding attention window, which llama.cpp ignores."""
    sliding = getattr(config, "sliding_window", None)
    if sliding and window > sliding:
        raise UnsupportedExportError(
            f"export.formats=[gguf]: llama.cpp runs {config.model_type} without its sliding window of {sliding} "
            f"tokens, so a checkpoint cannot be verified on windows of {window}: set data.window={sliding}, or use "
            "export.formats=[compressed_tensors] or [hf]"
        )


def check_names(lm: ModelStructure) -> None:
    """Raise UnsupportedExportError for a model with a tensor that has no name in GGUF files."""
    rename = renaming(lm)
    for name in untied_tensors(lm.model):
        rename(name)


def check_widths(layers: Iterable[LayerShape]) -> None:
    """Raise UnsupportedExportError for a layer whose inputs do not fill whole blocks."""
    for layer in layers:
        if layer.cols % BLOCK:
            raise UnsupportedExportError(
                f"export.formats=[gguf] holds blocks of {BLOCK} weights, but {layer.name} has {layer.cols} inputs: use "
                "export.formats=[compressed_tensors] or [hf]"
            )


def check_embeddings(type_name: TypeName, hidden_size: int) -> None:
    """Raise UnsupportedExportError for embeddings that do not fill whole blocks."""
    if hidden_size % BLOCK:
        raise UnsupportedExportError(
            f"export.embeddings={type_name} needs a hidden size that is a multiple of {BLOCK}, but it is "
            f"{hidden_size}: set export.embeddings=null"
        )
