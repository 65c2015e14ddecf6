"""One GGUF file for llama.cpp, in which every layer has the block type that the search chose.

Names, metadata and tokenizer are written as llama.cpp's converter writes them. Norms and biases are float32. A tied
head is not stored.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from evopress.compressors.base import Compressor
from evopress.compressors.drop import Drop
from evopress.export.base import Format, UnsupportedExportError, check_halves, check_package
from evopress.export.config_files import config_without_dropped_blocks, write_config_files
from evopress.export.formats.gguf_limits import (
    check_architecture,
    check_attention,
    check_embeddings,
    check_grids,
    check_names,
    check_widths,
)
from evopress.export.formats.gguf_metadata import add_metadata, has_scaled_rope, head_dim
from evopress.export.formats.gguf_tensors import (
    ARCHITECTURES,
    file_tensors,
    renaming,
    reordered,
    rows_of,
)
from evopress.export.formats.gguf_tokenizer import add_tokenizer, check_tokenizer, tokenizer_bytes
from evopress.export.planned import PlannedModel
from evopress.export.registry import register_format
from evopress.export.searched import SearchedModel
from evopress.export.settings import Export
from evopress.export.state import untied_tensors
from evopress.models.checkpoints import read_folder, read_folder_config
from evopress.models.language_model import LanguageModel
from evopress.space.settings import SpaceSettings
from evopress.weights.block_grids import BLOCK, TYPES, TypeName
from evopress.weights.ggml import round_to

FILE = "model.gguf"

TENSOR_ENTRY_BYTES = 64
"""Approximate bytes of a tensor's entry in the header: name, shape, type and offset."""


@register_format
class GGUFFile(Format):
    """Block types exactly as the search chose them. Embeddings and head are in `dtype`, or in the type `embeddings`."""

    name: ClassVar[str] = "gguf"
    packs_levels: ClassVar[bool] = True
    title: ClassVar[str] = "GGUF with a block type per layer"
    library = "gguf"
    engines = ("llama_cpp",)
    dense_format: ClassVar[str] = "gguf"
    cache_types = ("f16", "bf16", "q8_0", "q4_0")
    tags: ClassVar[tuple[str, ...]] = ("gguf",)
    commands = (
        "llama-cli -m {folder}/model.gguf",
        "python -c \"from llama_cpp import Llama; Llama('{folder}/model.gguf')\"",
    )

    def __init__(self, pre_tokenizer: str | None = None, embeddings: TypeName | None = None):
        self.pre_tokenizer = pre_tokenizer
        self.embeddings = embeddings

    @classmethod
    def from_settings(cls, settings: Export) -> Self:
        return cls(settings.pre_tokenizer, settings.embeddings)

    @classmethod
    def recognizes(cls, folder: Path, config: Mapping[str, object]) -> bool:
        return (folder / FILE).is_file()

    def check_settings(self, compressor: Compressor | Drop, space: SpaceSettings) -> None:
        check_package(self, "gguf", extra="gguf")
        kinds = compressor.weight_kinds if isinstance(compressor, Compressor) else frozenset()
        if not kinds or not all(kind.is_ggml_type for kind in kinds):
            check_grids(compressor)
        elif self.embeddings and isinstance(compressor, Compressor) and compressor.compresses_embeddings:
            raise UnsupportedExportError(
                f"export.embeddings={self.embeddings} rounds embeddings after the search, but with "
                "compress.embeddings=true they are units of the search: set export.embeddings=null or "
                "compress.embeddings=false"
            )
        check_halves(self, compressor, space)

    def check_model(self, planned: PlannedModel) -> None:
        self._check_parts(planned.lm)
        check_attention(planned.lm.model.config, planned.window)
        check_widths(planned.layers)

    def check_profile(self, searched: SearchedModel) -> None:
        self._check_parts(searched.lm)
        if not searched.levels:
            raise UnsupportedExportError(
                "export.formats=[gguf] holds block types, but this profile has none: use export.formats=[hf]"
            )
        for layer in searched.levels:
            rows_of(layer, searched.packed(layer))

    def _check_parts(self, lm: LanguageModel) -> None:
        """Raise UnsupportedExportError for a model or a tokenizer that a GGUF file cannot hold."""
        check_architecture(lm.model.config)
        check_names(lm)
        check_tokenizer(lm.tokenizer, self.pre_tokenizer)
        if self.embeddings:
            check_embeddings(self.embeddings, lm.hidden_size)

    def hub_commands(self, repository: str) -> list[str]:
        return [
            f"llama-cli --hf-repo {repository} --hf-file {FILE}",
            f"python -c \"from llama_cpp import Llama; Llama.from_pretrained('{repository}', filename='{FILE}')\"",
        ]

    def default_dtype(self, searched: SearchedModel) -> torch.dtype:
        """float16, in which every build of llama.cpp computes."""
        return torch.float16

    def as_stored(self, name: str, tensor: Tensor, *, searched: SearchedModel, dtype: torch.dtype) -> Tensor:
        if tensor.ndim == 1 or name.removesuffix(".weight") in searched.levels:
            return tensor
        if self.embeddings and tensor.ndim == 2:
            return round_to(tensor.float(), self.embeddings).dense()
        return tensor.to(dtype)

    def predicted_bytes(self, searched: SearchedModel, dtype: torch.dtype) -> int:
        config = searched.lm.model.config
        uncompressed = searched.uncompressed_tensors().values()
        in_vectors = sum(tensor.numel() for tensor in uncompressed if tensor.ndim == 1)
        in_matrices = sum(tensor.numel() for tensor in uncompressed if tensor.ndim > 1)
        rope_bytes = 2 * head_dim(config) * has_scaled_rope(config)
        bytes_per_block = TYPES[self.embeddings].num_bytes if self.embeddings else BLOCK * dtype.itemsize
        return searched.level_bytes + in_matrices // BLOCK * bytes_per_block + 4 * in_vectors + rope_bytes

    def predicted_header_bytes(self, searched: SearchedModel) -> int:
        entries = TENSOR_ENTRY_BYTES * len(searched.renumbered(untied_tensors(searched.lm.model)))
        return entries + tokenizer_bytes(searched.lm)

    def write(self, searched: SearchedModel, folder: Path, *, dtype: torch.dtype) -> None:
        from gguf import GGMLQuantizationType, GGUFWriter  # optional package

        lm, config = searched.lm, config_without_dropped_blocks(searched, dtype)
        writer = GGUFWriter(folder / FILE, ARCHITECTURES[lm.model.config.model_type])
        writer.add_name(lm.name)
        add_metadata(writer, config)
        add_tokenizer(writer, lm, self.pre_tokenizer)
        for name, tensor, type_name in file_tensors(searched, dtype, embeddings=self.embeddings):
            data = tensor.view(torch.uint8) if type_name == "BF16" else tensor
            writer.add_tensor(name, data.numpy(), raw_dtype=GGMLQuantizationType[type_name])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        write_config_files(config, lm, folder)

    def load(self, folder: Path, dtype: torch.dtype, *, attention: str | None = None) -> PreTrainedModel:
        """Load with transformers, decoded. config.json is used too, because rope scaling in GGUF files is ignored."""
        values = read_folder_config(folder).to_dict()
        if values["model_type"] not in ARCHITECTURES:
            known = ", ".join(ARCHITECTURES)
            raise ValueError(f"its model is of type {values['model_type']}, but a GGUF file can only hold {known}")
        values["model_type"] = ARCHITECTURES[values["model_type"]]  # transformers reads no GGUF file of type mistral
        config = AutoConfig.for_model(**values)
        return read_folder(folder, config, dtype=dtype, attention=attention, gguf_file=FILE)

    def path_for_engine(self, folder: Path) -> Path:
        return folder / FILE

    def check_files(self, searched: SearchedModel, folder: Path, *, dtype: torch.dtype) -> dict[str, object]:
        """Decode every layer with the gguf package, and compare it with the searched weights bit for bit."""
        from gguf import GGUFReader, dequantize  # optional package

        tensors = {tensor.name: tensor for tensor in GGUFReader(folder / FILE).tensors}
        config, rename = searched.lm.model.config, renaming(searched.lm)
        for new_name, layer in searched.renumbered({layer: layer for layer in searched.levels}).items():
            tensor = tensors[rename(f"{new_name}.weight")]
            expected = reordered(config, layer, rows=searched.packed(layer).dense())
            if not torch.equal(torch.from_numpy(dequantize(tensor.data, tensor.tensor_type)), expected):
                raise ValueError(f"{self.name}: {layer} does not decode to the searched weights")
        types = Counter(tensor.tensor_type.name for tensor in tensors.values())
        return {"layers_with_equal_weights": len(searched.levels), "types": dict(types)}
