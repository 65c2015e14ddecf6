"""Writes a random Llama-type model of two billion parameters in bfloat16.

python experiments/memory/make_model.py FOLDER
"""

import sys

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM


def main(folder: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained("evopress/assets/tiny")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=3072,
        intermediate_size=3072,
        num_hidden_layers=38,
        num_attention_heads=24,
        num_key_value_heads=8,
        tie_word_embeddings=False,
    )
    torch.set_default_dtype(torch.bfloat16)
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder, max_shard_size="1GB")
    tokenizer.save_pretrained(folder)
    print(f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters")


if __name__ == "__main__":
    main(*sys.argv[1:])
