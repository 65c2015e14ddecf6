"""One GGUF file for llama.cpp, in which every layer has the block type that the search chose.

Names, metadata and tokenizer follow llama.cpp's converter. Llama's q and k rows are reordered there (the two halves of
a head interleaved), which moves whole rows and so leaves every code and scale as it is. Norms and biases are float32;
a tied head is not stored.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from evopress.compressors.base import Compressor
from evopress.compressors.drop import Drop
from evopress.compressors.gguf import GGUF as GGUFLevels
from evopress.compressors.integer_levels import IntegerLevels
from evopress.export.base import (
    Format,
    Refused,
    Searched,
    level_bytes,
    need_package,
    own_tensors,
    refuse_halves,
    stored_config,
    unsearched,
    write_config,
)
from evopress.export.tokenizers import add_tokenizer, pre_tokenizer, tokenizer_bytes
from evopress.models.language_model import LanguageModel
from evopress.space.settings import SpaceSettings
from evopress.weights.base import CompressedWeight
from evopress.weights.block_grids import BLOCK, TYPES, TypeName
from evopress.weights.ggml import GgmlWeight, round_to
from evopress.weights.integer import QuantizedWeight
from evopress.weights.kquants import KWeight

if TYPE_CHECKING:
    from gguf import GGUFReader, GGUFWriter

FILE = "model.gguf"

ARCHITECTURES: Mapping[str, str] = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""Name in llama.cpp by `config.model_type`."""

SAME_AS_TYPES = {4: "Q4_0", 5: "Q5_0", 8: "Q8_0"}
"""The block type that a symmetric grid of so many bits, in groups of 32 with float16 scales, is the same as."""

TENSOR_ENTRY_BYTES = 64
"""What a tensor takes in the header: name, shape, type and place, about."""

FLOATS = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}


class GGUF(Format):
    """Block types exactly as searched; embeddings and head in `dtype`, or rounded to the type `embeddings`."""

    name: ClassVar[str] = "gguf"
    packs_levels: ClassVar[bool] = True
    title: ClassVar[str] = "GGUF, a block type per layer"
    commands = (
        "llama-cli -m {folder}/model.gguf",
        "python -c \"from llama_cpp import Llama; Llama('{folder}/model.gguf')\"",
    )

    def __init__(self, pre_tokenizer: str | None = None, embeddings: TypeName | None = None):
        self.pre_tokenizer = pre_tokenizer
        self.embeddings = embeddings

    def refuse_settings(self, compressor: Compressor | Drop, space: SpaceSettings) -> None:
        need_package(self, "gguf", "gguf")
        refuse_halves(self, space)
        if isinstance(compressor, GGUFLevels):
            if self.embeddings and compressor.embeddings:
                raise Refused(
                    f"export.embeddings={self.embeddings} rounds embeddings after the search, but they are units of "
                    "it: set export.embeddings=null or compress.embeddings=false"
                )
            return
        if not isinstance(compressor, IntegerLevels):
            raise Refused(
                f"export.formats=[gguf] holds block types, which compress={type(compressor).__name__.lower()} does not "
                "make: use compress=gguf, or export.formats=[hf]"
            )
        fits = compressor.symmetric and compressor.group_size == BLOCK and compressor.scale_dtype == "float16"
        if not fits or set(compressor.bits) - set(SAME_AS_TYPES):
            raise Refused(
                "export.formats=[gguf] holds integer codes only of 4, 5 and 8 bits, symmetric, in groups of 32, with "
                "float16 scales: use compress=gguf, or set compress.bits=[4,5,8] compress.symmetric=true "
                "compress.group_size=32 compress.scale_dtype=float16"
            )

    def refuse(self, searched: Searched) -> None:
        lm = searched.lm
        if lm.model.config.model_type not in ARCHITECTURES:
            raise Refused(
                f"export.formats=[gguf] knows {', '.join(ARCHITECTURES)}, and this model is "
                f"{lm.model.config.model_type}: use export.formats=[compressed_tensors] or [hf]"
            )
        rope = lm.model.config.rope_parameters.get("rope_type", "default")
        if rope not in ("default", "llama3"):
            raise Refused(f"export.formats=[gguf] knows no {rope} rope scaling: use export.formats=[hf]")
        if not searched.levels:
            raise Refused("export.formats=[gguf] holds block types, and this profile has none: use export.formats=[hf]")
        for layer in searched.levels:
            block_type(layer, searched.packed(layer))
        if self.embeddings and lm.hidden_size % BLOCK:
            raise Refused(
                f"export.embeddings={self.embeddings} needs a hidden size that is a multiple of {BLOCK}, and this is "
                f"{lm.hidden_size}: set export.embeddings=null"
            )
        if self.pre_tokenizer is None:
            pre_tokenizer(lm.tokenizer)

    def dtype(self, searched: Searched) -> torch.dtype:
        """float16, which every build of llama.cpp computes with."""
        return torch.float16

    def as_stored(self, searched: Searched, name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        if tensor.ndim == 1 or name.removesuffix(".weight") in searched.levels:
            return tensor
        if self.embeddings and tensor.ndim == 2:
            return round_to(tensor.float(), self.embeddings).dense()
        return tensor.to(dtype)

    def predicted_bytes(self, searched: Searched, dtype: torch.dtype) -> int:
        fixed = unsearched(searched).values()
        vectors = sum(tensor.numel() for tensor in fixed if tensor.ndim == 1)
        matrices = sum(tensor.numel() for tensor in fixed if tensor.ndim > 1)
        scaled = 2 * head_dim(searched.lm.model.config) * _is_scaled(searched.lm.model.config)
        per_block = TYPES[self.embeddings].num_bytes if self.embeddings else BLOCK * dtype.itemsize
        return level_bytes(searched) + matrices // BLOCK * per_block + 4 * vectors + scaled

    def predicted_header_bytes(self, searched: Searched) -> int:
        entries = TENSOR_ENTRY_BYTES * len(searched.renumbered(own_tensors(searched.lm.model)))
        return entries + tokenizer_bytes(searched.lm)

    def write(self, searched: Searched, dtype: torch.dtype, folder: Path) -> None:
        from gguf import GGMLQuantizationType, GGUFWriter  # optional package

        lm, config = searched.lm, stored_config(searched, dtype)
        writer = GGUFWriter(folder / FILE, ARCHITECTURES[lm.model.config.model_type])
        writer.add_name(lm.name)
        add_metadata(writer, config)
        add_tokenizer(writer, lm, self.pre_tokenizer or pre_tokenizer(lm.tokenizer))
        for name, tensor, kind in stored_tensors(searched, dtype, self.embeddings):
            data = tensor.view(torch.uint8) if kind == "BF16" else tensor
            writer.add_tensor(name, data.numpy(), raw_dtype=GGMLQuantizationType[kind])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        write_config(config, lm, folder)

    def load(self, folder: Path, dtype: torch.dtype, attention: str | None = None) -> PreTrainedModel:
        """By transformers, decoded; its own reading of the metadata lacks rope scaling, so config.json is used."""
        values = AutoConfig.from_pretrained(folder).to_dict()
        values["model_type"] = ARCHITECTURES[values["model_type"]]  # transformers has no GGUF of type mistral
        return AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=FILE, config=AutoConfig.for_model(**values), dtype=dtype, attn_implementation=attention
        )

    def check_files(self, searched: Searched, dtype: torch.dtype, folder: Path) -> dict[str, object]:
        """Decode every layer with the gguf package, and compare with the searched weights bit for bit."""
        from gguf import GGUFReader, dequantize

        reader = GGUFReader(folder / FILE)
        stored = {tensor.name: tensor for tensor in reader.tensors}
        rename = renaming(searched.lm)
        for place, layer in searched.renumbered({layer: layer for layer in searched.levels}).items():
            tensor = stored[rename(f"{place}.weight")]
            expected = reordered(searched.lm, layer, searched.packed(layer).dense())
            if not torch.equal(torch.from_numpy(dequantize(tensor.data, tensor.tensor_type)), expected):
                raise ValueError(f"{self.name}: {layer} does not decode to the searched weights")
        return {"layers_with_equal_weights": len(searched.levels), "types": _count_types(reader)}


def _count_types(reader: "GGUFReader") -> dict[str, int]:
    counts: dict[str, int] = {}
    for tensor in reader.tensors:
        counts[tensor.tensor_type.name] = counts.get(tensor.tensor_type.name, 0) + 1
    return counts


def block_type(layer: str, weight: CompressedWeight) -> GgmlWeight | KWeight:
    """The weight as a block type, without any rounding. Raises Refused where it is on no such grid."""
    if isinstance(weight, GgmlWeight | KWeight):
        return weight
    if (
        isinstance(weight, QuantizedWeight)
        and weight.symmetric
        and weight.group_size == BLOCK
        and weight.scales.dtype == torch.float16
        and weight.bits in SAME_AS_TYPES
    ):
        codes = weight.codes().short() - 2 ** (weight.bits - 1)
        return GgmlWeight.from_codes(codes, weight.scales, offsets=weight.scales, type_name=SAME_AS_TYPES[weight.bits])
    raise Refused(f"export.formats=[gguf]: {layer} is on the grid of no block type: use compress=gguf")


def stored_tensors(
    searched: Searched, dtype: torch.dtype, embeddings: TypeName | None
) -> Iterator[tuple[str, Tensor, str]]:
    """Name, content and ggml type of every tensor, in the order of the model."""
    lm, rename = searched.lm, renaming(searched.lm)
    if _is_scaled(lm.model.config):
        yield "rope_freqs.weight", rope_factors(lm.model.config), "F32"
    for place, (name, tensor) in searched.renumbered({n: (n, t) for n, t in own_tensors(lm.model).items()}).items():
        layer, _, _ = name.rpartition(".")
        if layer in searched.levels and name.endswith(".weight"):
            weight = block_type(layer, searched.packed(layer))
            yield rename(place), reordered(lm, layer, weight.data).cpu().contiguous(), weight.type_name
        else:
            yield rename(place), *_unsearched(reordered(lm, layer, tensor), dtype, embeddings)


def _unsearched(tensor: Tensor, dtype: torch.dtype, embeddings: TypeName | None) -> tuple[Tensor, str]:
    """Content and type of a norm, a bias, the embeddings or the head."""
    if tensor.ndim > 1 and embeddings:
        return round_to(tensor.float(), embeddings).data.cpu(), embeddings
    stored = tensor.to(torch.float32 if tensor.ndim == 1 else dtype).cpu().contiguous()
    return stored, FLOATS[stored.dtype]


def renaming(lm: LanguageModel) -> Callable[[str], str]:
    """From a tensor's name in transformers to its name in a GGUF file. Raises ValueError for an unknown one."""
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

    arch = next(key for key in MODEL_ARCH if MODEL_ARCH_NAMES[key] == ARCHITECTURES[lm.model.config.model_type])
    names = get_tensor_name_map(arch, lm.num_blocks)

    def rename(name: str) -> str:
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise ValueError(f"GGUF has no name for {name}")
        return found

    return rename


def reordered(lm: LanguageModel, layer: str, rows: Tensor) -> Tensor:
    """Rows (rows, …) of a layer in the order that llama.cpp expects: Llama's q and k with the halves interleaved."""
    config = lm.model.config
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(layer.rpartition(".")[2])
    if ARCHITECTURES[config.model_type] != "llama" or heads is None:
        return rows
    return rows.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)  # (heads, half, 2) to rows


def head_dim(config: PretrainedConfig) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _is_scaled(config: PretrainedConfig) -> bool:
    return config.rope_parameters.get("rope_type", "default") == "llama3"


def rope_factors(config: PretrainedConfig) -> Tensor:
    """What llama.cpp divides each rope frequency by, float32 (head_dim / 2,).

    Source: the scaling of Llama 3.1, as in `_compute_llama3_parameters` of transformers, which gives the quotient of
    plain and scaled frequencies.
    """
    rope = config.rope_parameters
    factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    context = rope["original_max_position_embeddings"]
    size = head_dim(config)
    waves = 2 * torch.pi * rope["rope_theta"] ** (torch.arange(0, size, 2, dtype=torch.float64) / size)
    smooth = ((context / waves - low) / (high - low)).clamp(0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).float()


def add_metadata(writer: "GGUFWriter", config: PretrainedConfig) -> None:
    """What llama.cpp needs to know of the model besides its tensors."""
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(head_dim(config))
    writer.add_key_length(head_dim(config))
    writer.add_value_length(head_dim(config))
    writer.add_vocab_size(config.vocab_size)
    writer.add_quantization_version(2)
    if getattr(config, "sliding_window", None) and json.dumps(getattr(config, "layer_types", "")).count("sliding"):
        writer.add_sliding_window(config.sliding_window)
