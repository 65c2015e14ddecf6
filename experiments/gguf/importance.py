"""Measures an importance matrix for llama.cpp: the mean square of every input of a layer, over the start of a text.

    python experiments/gguf/importance.py MODEL_FOLDER TEXT FILE.npz

The arrays have the names of the weights in GGUF files. `llama-imatrix` measures the same.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

NUM_TOKENS, WINDOW = 16384, 512
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def main(folder: str, text: Path, target: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    ids = AutoTokenizer.from_pretrained(folder)(text.read_text(encoding="utf-8"))["input_ids"][:NUM_TOKENS]
    sums: dict[str, Tensor] = {}

    def add_squares_to(name: str, layer: nn.Module) -> None:
        def add(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            squares = inputs[0].float().square().flatten(0, 1).sum(0)
            sums[name] = sums[name] + squares if name in sums else squares

        layer.register_forward_pre_hook(add)

    for index, block in enumerate(model.model.layers):
        for layer, name in NAMES.items():
            add_squares_to(f"blk.{index}.{name}.weight", block.get_submodule(layer))
    with torch.no_grad():
        for windows in torch.tensor(ids).view(-1, WINDOW).split(4):
            model.model(input_ids=windows)
    np.savez(target, **{name: (total / NUM_TOKENS).numpy() for name, total in sums.items()})  # type: ignore[arg-type]


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
