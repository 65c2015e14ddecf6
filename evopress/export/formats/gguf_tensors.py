"""The tensors of a GGUF file: their names, types and contents.

GGUF files have the rows of Llama's q and k in another order: the two halves of a head are interleaved. This moves whole
rows, so codes and scales do not change.
"""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor
from transformers import PretrainedConfig

from evopress.export.base import UnsupportedExportError
from evopress.export.formats.gguf_metadata import has_scaled_rope, rope_factors
from evopress.export.searched import SearchedModel
from evopress.export.state import untied_tensors
from evopress.models.structure import ModelStructure
from evopress.weights.base import CompressedWeight, GgufRows
from evopress.weights.block_grids import TypeName
from evopress.weights.ggml import round_to

ARCHITECTURES: Mapping[str, str] = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""llama.cpp's name of the architecture for each `config.model_type`."""

FLOAT_TYPES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}


def rows_of(layer: str, weight: CompressedWeight) -> GgufRows:
    """The rows of a compressed layer. Raises UnsupportedExportError if no ggml type has its grid."""
    rows = weight.gguf_rows()
    if rows is None:
        raise UnsupportedExportError(f"export.formats=[gguf]: no block type has the grid of {layer}: use compress=gguf")
    return rows


def file_tensors(
    searched: SearchedModel, dtype: torch.dtype, *, embeddings: TypeName | None
) -> Iterator[tuple[str, Tensor, str]]:
    """Name, content and ggml type of every tensor, in the order of the model."""
    lm, rename = searched.lm, renaming(searched.lm)
    if has_scaled_rope(lm.model.config):
        yield "rope_freqs.weight", rope_factors(lm.model.config), "F32"
    tensors = untied_tensors(lm.model)
    for new_name, name in searched.renumbered({name: name for name in tensors}).items():
        layer = name.rpartition(".")[0]
        if layer in searched.levels and name.endswith(".weight"):
            stored = rows_of(layer, searched.packed(layer))
            rows = reordered(lm.model.config, layer, rows=stored.data)
            yield rename(new_name), rows.cpu().contiguous(), stored.type_name
        else:
            rows = reordered(lm.model.config, layer, rows=tensors[name])
            yield rename(new_name), *_uncompressed(rows, dtype, embeddings=embeddings)


def _uncompressed(tensor: Tensor, dtype: torch.dtype, *, embeddings: TypeName | None) -> tuple[Tensor, str]:
    """Content and type of a norm, a bias, the embeddings or the head."""
    if tensor.ndim > 1 and embeddings:
        return round_to(tensor.float(), embeddings).data.cpu(), embeddings
    stored = tensor.to(torch.float32 if tensor.ndim == 1 else dtype).cpu().contiguous()
    return stored, FLOAT_TYPES[stored.dtype]


def renaming(lm: ModelStructure) -> Callable[[str], str]:
    """A function that maps a tensor's name in transformers to its name in a GGUF file.

    It raises UnsupportedExportError for a name that GGUF does not know.
    """
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map  # optional package

    arch = next(key for key in MODEL_ARCH if MODEL_ARCH_NAMES[key] == ARCHITECTURES[lm.model.config.model_type])
    names = get_tensor_name_map(arch, lm.num_blocks)

    def rename(name: str) -> str:
        new_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if new_name is None:
            raise UnsupportedExportError(f"export.formats=[gguf] has no name for {name}: use export.formats=[hf]")
        return new_name

    return rename


def reordered(config: PretrainedConfig, layer: str, *, rows: Tensor) -> Tensor:
    """The rows (rows, …) of a layer in llama.cpp's order, where the halves of Llama's q and k heads are interleaved."""
    num_heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    heads = num_heads.get(layer.rpartition(".")[2])
    if ARCHITECTURES[config.model_type] != "llama" or heads is None:
        return rows
    return rows.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)  # (heads, half, 2) to rows
