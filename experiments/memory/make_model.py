"""Write a random Llama-type model of two billion bfloat16 parameters: make_model.py FOLDER."""

import sys

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

SHAPE = {"hidden_size": 3072, "intermediate_size": 3072, "num_attention_heads": 24, "num_key_value_heads": 8}


def main(folder: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained("evopress/assets/tiny")
    config = LlamaConfig(vocab_size=len(tokenizer), num_hidden_layers=38, tie_word_embeddings=False, **SHAPE)
    torch.set_default_dtype(torch.bfloat16)
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder, max_shard_size="1GB")
    tokenizer.save_pretrained(folder)
    print(f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters")


if __name__ == "__main__":
    main(*sys.argv[1:])
