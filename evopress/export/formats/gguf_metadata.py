"""Writes the metadata of a GGUF file that describes the model."""

import json
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PretrainedConfig

if TYPE_CHECKING:
    from gguf import GGUFWriter


def head_dim(config: PretrainedConfig) -> int:
    """The number of dimensions of an attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def has_scaled_rope(config: PretrainedConfig) -> bool:
    """Whether rope frequencies are scaled as in Llama 3.1."""
    return config.rope_parameters.get("rope_type", "default") == "llama3"


def rope_factors(config: PretrainedConfig) -> Float[Tensor, " half_head_dim"]:
    """The numbers by which llama.cpp divides the rope frequencies, float32.

    They are the plain frequencies divided by the scaled ones.

    Source: the scaling of Llama 3.1, `_compute_llama3_parameters` of transformers.
    """
    rope = config.rope_parameters
    factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    context = rope["original_max_position_embeddings"]
    size = head_dim(config)
    waves = 2 * torch.pi * rope["rope_theta"] ** (torch.arange(0, size, 2, dtype=torch.float64) / size)
    smooth = ((context / waves - low) / (high - low)).clamp(0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).float()


def add_metadata(writer: "GGUFWriter", config: PretrainedConfig) -> None:
    """Add everything that llama.cpp has to know about the model except its tensors."""
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
