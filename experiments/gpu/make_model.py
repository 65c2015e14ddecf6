"""Writes a random Llama model whose blocks have the shape of a large one, in bfloat16, and a text of random words.

python experiments/gpu/make_model.py FOLDER SHAPE BLOCKS

SHAPE is 1b, 8b or 70b (Llama 3). BLOCKS is the number of blocks; 0 means all of them. A GPU is used if there is one.
"""

import json
import random
import sys
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

SHAPES = {"1b": (2048, 8192, 32, 16), "8b": (4096, 14336, 32, 32), "70b": (8192, 28672, 64, 80)}
"""Hidden size, size of the MLP, attention heads and blocks."""

VOCABULARY = 128256

TEXT_COPIES = 4
"""How often the text of the package is repeated, each time with other words next to each other."""


def random_words() -> str:
    topics = json.loads(Path("evopress/assets/text/python_topics.json").read_text())
    words = " ".join(topics.values()).split()
    generator = random.Random(0)
    paragraphs = []
    for _ in range(TEXT_COPIES):
        generator.shuffle(words)
        paragraphs += [" ".join(words[start : start + 200]) for start in range(0, len(words), 200)]
    return "\n\n".join(paragraphs)


def main(folder: str, shape: str, blocks: str) -> None:
    hidden, mlp, heads, all_blocks = SHAPES[shape]
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=int(blocks) or all_blocks,
        num_attention_heads=heads,
        num_key_value_heads=8,
        max_position_embeddings=8192,
        tie_word_embeddings=shape == "1b",
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM(config)
    model.cpu().save_pretrained(folder, max_shard_size="5GB")
    AutoTokenizer.from_pretrained("evopress/assets/tiny").save_pretrained(folder)
    (Path(folder) / "words.txt").write_text(random_words())
    print(f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters")


if __name__ == "__main__":
    main(*sys.argv[1:])
